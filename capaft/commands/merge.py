"""`capaft merge`: base and adapter as one plain Hugging Face directory, independent of capaft."""

from __future__ import annotations

import json
import shlex
import shutil
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from capaft.commands.libraries import loading_libraries
from capaft.commands.reporting import Json, Run, reporting, suggest
from capaft.config.local_paths import shared_name
from capaft.config.open_options import MergeOptions
from capaft.config.signature import signature
from capaft.config.sources import resolve_settings
from capaft.support import hub, strict_json
from capaft.support.activity import activity
from capaft.support.console import print_line, print_result
from capaft.support.counting import counted
from capaft.support.errors import TrainingError, UsageError, one_line
from capaft.support.files import make_ordinary, write_atomically
from capaft.support.markdown import fenced, front_matter, inline
from capaft.support.paths import named_path
from capaft.support.signals import uninterrupted, unwind_from_here

if TYPE_CHECKING:
    from capaft.training.record.saved_run import SavedRun


@signature(MergeOptions)
def merge_command(
    run: Run,
    output: Annotated[str, typer.Option("--output", help="Directory to write the merged model to.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the model in the output directory.")] = False,
    json: Json = False,
    **flags: str | bool | list[str] | None,
) -> None:
    """Write base and adapter as one plain model directory."""
    with reporting() as console:
        options, _ = resolve_settings(MergeOptions, flags=flags, environ={})
        _check_output(output, named_path("--output", output), overwrite=overwrite)
        with loading_libraries(console):
            from capaft.model.origin import literal
            from capaft.training.record.saved_run import open_run

        unwind_from_here()
        started = time.perf_counter()
        as_stored = options.base_dtype is None
        with activity(console, "loading the base model and the adapter"):
            saved = open_run(run, options, partial(print_line, console), as_stored=as_stored)
        with activity(console, f"merging into {output}"):
            sites = write_merged(saved, output, overwrite=overwrite, dequantise=options.dequantise, as_stored=as_stored)
        results = {"output": output, "sites": sites, "seconds": round(time.perf_counter() - started, 3)}
        if json:
            print_result(strict_json.document(results))
            return
        print_result(f"merged {counted(sites, 'site') if sites else 'the trained parameters'} into {output}")
        auto_class = saved.task.auto_class_for(saved.base.model.config)
        directory = literal(str(Path(output).expanduser()))
        loads = f"from transformers import {auto_class}; {auto_class}.from_pretrained({directory})"
        suggest(console, f"python -c {shlex.quote(loads)}")


def _check_output(output: str, path: Path, *, overwrite: bool) -> None:
    """Make sure that a model may be written to a directory.

    Raises:
        UsageError: it is a file, or holds a model that is not to be replaced, or something else.
    """
    if path.exists() and not path.is_dir():
        raise UsageError(f"--output {output} is a file; name a directory that is new or empty")
    if not path.is_dir() or not any(path.iterdir()):
        return
    if not (path / "config.json").exists():
        raise UsageError(f"--output {output} holds something else; name a directory that is new or empty")
    if not overwrite:
        raise UsageError(f"--output {output} holds a model; name another directory, or replace it with --overwrite")


def write_merged(
    saved: SavedRun, output: str, *, overwrite: bool = False, dequantise: bool = False, as_stored: bool = True
) -> int:
    """Merge the adapter and write weights, configuration with labels, tokenizer and a model card.

    The directory is written under a temporary name and renamed, so that it is there whole or not at all.

    Args:
        saved: the opened run; its model is merged in place.
        output: the directory to write.
        overwrite: replace the model in that directory.
        dequantise: turn quantised layers into plain ones first.
        as_stored: write each tensor in the dtype that the base model's checkpoint has it in.

    Returns:
        Number of merged sites.

    Raises:
        UsageError: the directory holds something else, or the adapter cannot be merged.
        TrainingError: the disk is full or cannot be written.
    """
    from capaft.adapter.merge import merge
    from capaft.model.modalities import has_towers
    from capaft.model.stored_dtypes import stored_dtypes

    path = named_path("--output", output)
    _check_output(output, path, overwrite=overwrite)
    stored = stored_dtypes(saved.base.base) if as_stored else None
    if stored and not dequantise:
        # Exact, since these values were stored so; what is merged into them is then rounded once.
        stored.restore(saved.model)
    count = merge(saved.model, dequantise=dequantise)
    if stored:
        stored.restore(saved.model)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = None
        try:
            with uninterrupted():
                aside = Path(tempfile.mkdtemp(prefix=f".{path.name[:40]}.", dir=path.parent))
            saved.model.save_pretrained(aside)  # type: ignore[operator]
            if stored and stored.config:
                _name_dtype(aside / "config.json", stored.config)
            if has_towers(saved.model):
                _write_processors(saved, aside)
            saved.base.processor.save_pretrained(aside)
            write_atomically(aside / "README.md", _card(saved))
            make_ordinary(aside)
            with uninterrupted():
                _replace(path, aside)
        finally:
            if aside:
                shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise TrainingError(f"cannot write {output}: {error.strerror or error}; nothing was left there") from None
    return count


def _name_dtype(file: Path, dtype: str) -> None:
    """Have a configuration name the dtype that the base's does, for which transformers takes that of one tensor."""
    config = json.loads(file.read_text(encoding="utf-8"))
    if config.get("dtype") != dtype:
        write_atomically(file, json.dumps(config | {"dtype": dtype}, indent=2, sort_keys=True) + "\n")


def _replace(path: Path, aside: Path) -> None:
    """Put a directory in the place of another, which is moved away first and only then removed."""
    old = aside.with_name(f"{aside.name}.old")
    if path.exists():
        path.rename(old)
    try:
        aside.rename(path)
    except OSError:
        if old.exists():
            old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _write_processors(saved: SavedRun, directory: Path) -> None:
    """Write the processors of a checkpoint that reads more than text, which the training did not need."""
    from transformers import AutoProcessor

    from capaft.model.load import locate_model

    settings = saved.settings
    source = locate_model(settings.model)
    common: dict[str, Any] = {"revision": settings.revision, "trust_remote_code": settings.trust_remote_code}
    if not Path(source).is_dir():
        common["local_files_only"] = hub.offline()
    try:
        AutoProcessor.from_pretrained(source, **common).save_pretrained(directory)
    except (OSError, ValueError, ImportError) as error:
        reason = f"the checkpoint's other processors cannot be loaded ({one_line(error)})"
        warnings.warn(f"only the tokenizer is written: {reason}", stacklevel=2)


def _card(saved: SavedRun) -> str:
    method = saved.file.header.method.method
    name = inline(shared_name(saved.file.base.name or "an unnamed base model"))
    auto_class = saved.task.auto_class_for(saved.base.model.config)
    metadata = {
        "library_name": "transformers",
        "base_model": saved.file.base.hub_id,
        "pipeline_tag": saved.task.pipeline_tag,
    }
    code = f"""from transformers import {auto_class}

model = {auto_class}.from_pretrained("path/to/this/directory")"""
    labels = f"\nLabels: {', '.join(map(inline, saved.task.labels))}.\n" if saved.task.labels else ""
    return f"""{front_matter(metadata)}
# {name}, fine-tuned and merged

The weights of {name} with a {inline(method)} adapter added by capaft. It loads with transformers alone:

{fenced(code, "python")}
{labels}"""
