"""`capaft export`: an adapter in the form of another tool, with the same outputs."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from capaft.commands.libraries import loading_libraries
from capaft.commands.reporting import Json, Run, reporting
from capaft.config.choices import ExportFormat
from capaft.config.open_options import ExportOptions
from capaft.config.signature import signature
from capaft.config.sources import resolve_settings
from capaft.support import strict_json
from capaft.support.activity import activity
from capaft.support.console import print_line, print_result
from capaft.support.errors import UsageError
from capaft.support.paths import named_path
from capaft.support.signals import unwind_from_here

if TYPE_CHECKING:
    from capaft.training.record.saved_run import SavedRun

# A check before anything is loaded, and a writer that returns a record of what it wrote.
Check = Callable[[str, bool], None]
Writer = Callable[["SavedRun", str, ExportOptions, bool], dict[str, Any]]


@signature(ExportOptions)
def export_command(
    run: Run,
    output: Annotated[str, typer.Option("--output", help="Directory or file to write.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the adapter that is there.")] = False,
    json: Json = False,
    **flags: str | bool | list[str] | None,
) -> None:
    """Write an adapter in the form of another tool."""
    with reporting() as console:
        options, _ = resolve_settings(ExportOptions, flags=flags, environ={})
        check, write = _FORMATS[options.to]
        _check_options(options)
        with loading_libraries(console):
            from capaft.training.record.saved_run import open_run

            check(output, overwrite)
        unwind_from_here()
        started = time.perf_counter()
        with activity(console, "loading the base model and the adapter"):
            saved = open_run(run, options, partial(print_line, console), as_stored=options.base_dtype is None)
        with activity(console, f"writing {output}"):
            record = {"output": output, "to": options.to, **write(saved, output, options, overwrite)}
        for line in record.get("warnings", ()):
            print_line(console, f"warning: {line}")
        if json:
            print_result(strict_json.document(record | {"seconds": round(time.perf_counter() - started, 3)}))
            return
        print_result(f"exported to {output}: {record['summary']}")


def _check_options(options: ExportOptions) -> None:
    """Refuse options of another form.

    Raises:
        UsageError: one is set that has no effect.
    """
    for form, option, value in (("peft", "--pad-rank", options.pad_rank), ("gguf", "--dtype", options.dtype)):
        if value is not None and options.to != form:
            raise UsageError(f"{option} belongs to --to {form}, and has no effect with --to {options.to}")


def _check_peft(output: str, overwrite: bool) -> None:
    from capaft.exchange.peft_export import check_peft_output

    check_peft_output(output, named_path("--output", output), overwrite=overwrite)


def _write_peft(saved: SavedRun, output: str, options: ExportOptions, overwrite: bool) -> dict[str, Any]:
    """Write a PEFT directory.

    Raises:
        UsageError: PEFT cannot hold the adapter exactly.
    """
    from capaft.exchange.peft_export import export_peft

    peft = export_peft(
        saved.model,
        output,
        base=saved.base.base,
        pad_rank=options.pad_rank or 0,
        embeddings=_has_other_rows(saved),
        overwrite=overwrite,
    )
    size = sum(tensor.nbytes for tensor in peft.tensors.values())
    method, rank = peft.config["peft_type"], peft.config.get("r")
    return {
        "peft_type": method,
        "rank": rank,
        "tensors": len(peft.tensors),
        "bytes": size,
        "warnings": list(peft.cautions),
        "summary": f"{'a LoRA' if method == 'LORA' else method}{f' of rank {rank}' if rank else ''}, "
        f"{len(peft.tensors)} tensors, {size:,} bytes",
    }


def _check_gguf(output: str, overwrite: bool) -> None:
    from capaft.exchange.gguf_file import check_gguf_output

    check_gguf_output(output, overwrite=overwrite)


def _write_gguf(saved: SavedRun, output: str, options: ExportOptions, overwrite: bool) -> dict[str, Any]:
    """Write a LoRA of llama.cpp.

    Raises:
        UsageError: llama.cpp cannot hold the adapter exactly.
    """
    from capaft.exchange.gguf_export import export_gguf
    from capaft.exchange.gguf_lora import INSTEAD

    if _has_other_rows(saved):
        raise UsageError(f"{output}: the training added rows to the embedding, which a LoRA cannot bring; {INSTEAD}")
    lora = export_gguf(saved.model, output, base=saved.base.base, dtype=options.dtype or "float32", overwrite=overwrite)
    size = named_path("--output", output).stat().st_size
    rank = int(lora.alpha)
    return {
        "architecture": lora.architecture,
        "rank": rank,
        "tensors": len(lora.tensors),
        "bytes": size,
        "summary": f"a LoRA of rank {rank} for {lora.architecture}, {len(lora.tensors)} tensors, {size:,} bytes",
    }


def _has_other_rows(saved: SavedRun) -> bool:
    """True if the model's embedding has rows that its checkpoint does not have."""
    from capaft.model.load import load_configuration
    from capaft.model.vocabulary import embedding_rows

    if not saved.settings.resize_embeddings:
        return False
    return embedding_rows(saved.model) != int(load_configuration(saved.settings).get_text_config().vocab_size)


_FORMATS: dict[ExportFormat, tuple[Check, Writer]] = {
    "peft": (_check_peft, _write_peft),
    "gguf": (_check_gguf, _write_gguf),
}
