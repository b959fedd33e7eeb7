"""`capaft import`: a PEFT LoRA as an adapter file."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from capaft.commands.libraries import loading_libraries
from capaft.commands.reporting import Json, reporting, suggest
from capaft.config.open_options import ImportOptions
from capaft.config.signature import signature
from capaft.config.sources import resolve_settings
from capaft.support import strict_json
from capaft.support.activity import activity
from capaft.support.console import print_line, print_result
from capaft.support.counting import counted
from capaft.support.errors import UsageError
from capaft.support.files import check_writable
from capaft.support.paths import named_path
from capaft.support.signals import unwind_from_here


@signature(ImportOptions)
def import_command(
    directory: Annotated[str, typer.Argument(help="The directory of a PEFT LoRA.", metavar="DIR")],
    output: Annotated[Path, typer.Option("--output", help="Adapter file to write, ending in .safetensors.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace that file.")] = False,
    json: Json = False,
    **flags: str | bool | list[str] | None,
) -> None:
    """Make an adapter file of a PEFT LoRA."""
    with reporting() as console:
        options, _ = resolve_settings(ImportOptions, flags=flags, environ={})
        path = checked_output(output, overwrite=overwrite)
        with loading_libraries(console):
            from capaft.adapter.file.adapter_file import ADAPTER
            from capaft.adapter.file.save_load import save
            from capaft.exchange.peft_config import CONFIG
            from capaft.training.record.found_run import find_adapter_file, find_peft
            from capaft.training.record.saved_run import open_run

        unwind_from_here()
        if find_peft(directory) is None:
            file, _ = find_adapter_file(directory)  # Of what is not there, it says what may be meant.
            raise UsageError(f"{file} is no directory of a PEFT adapter, with {CONFIG} and no {ADAPTER}")
        with activity(console, "loading the base model and the adapter"):
            saved = open_run(directory, options, partial(print_line, console))
            size = save(saved.model, path, base=saved.base.base, task=saved.file.task, dtype=options.save_dtype)
        header = saved.file.header
        results = {"output": str(output), "bytes": size, "method": header.method.method, "sites": len(header.sites)}
        if json:
            print_result(strict_json.document({**results, "task": saved.task.name, "labels": list(saved.task.labels)}))
            return
        settings = header.method.options_text()
        what = f"{header.method.method}{f' ({settings})' if settings else ''}"
        print_result(f"{what} on {counted(len(header.sites), 'site')} in {counted(size, 'byte')}: {output}")
        suggest(console, f"capaft info {output}")


def checked_output(output: Path, *, overwrite: bool) -> Path:
    """The file to write.

    Raises:
        UsageError: it cannot be written, is there already, or would not be taken for an adapter file.
    """
    path = named_path("--output", output)
    if path.suffix != ".safetensors":
        raise UsageError(f"--output {output} must end in .safetensors, as in {output}.safetensors")
    if path.exists() and not overwrite:
        raise UsageError(f"--output {output} exists; name another file, or replace it with --overwrite")
    check_writable("--output", path)
    return path
