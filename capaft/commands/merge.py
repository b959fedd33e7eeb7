"""`capaft merge`: base and adapter as one plain Hugging Face directory, independent of capaft."""

from __future__ import annotations

import shutil
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from capaft.commands.reporting import Json, Run, quiet_libraries, reporting
from capaft.config.open_options import MergeOptions
from capaft.config.signature import signature
from capaft.config.sources import resolve_settings
from capaft.support import hub, strict_json
from capaft.support.errors import TrainingError, UsageError, one_line
from capaft.support.files import write_atomically
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
        _check_output(output, Path(output).expanduser(), overwrite=overwrite)
        quiet_libraries(console)
        from capaft.training.record.saved_run import open_run

        unwind_from_here()
        started = time.perf_counter()
        sites = write_merged(open_run(run, options), output, overwrite=overwrite, dequantise=options.dequantise)
        results = {"output": output, "sites": sites, "seconds": round(time.perf_counter() - started, 3)}
        print(strict_json.document(results) if json else f"merged {sites} sites into {output}")


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


def write_merged(saved: SavedRun, output: str, *, overwrite: bool = False, dequantise: bool = False) -> int:
    """Merge the adapter and write weights, configuration with labels, tokenizer and a model card.

    The directory is written under a temporary name and renamed, so that it is there whole or not at all.

    Args:
        saved: the opened run; its model is merged in place.
        output: the directory to write.
        overwrite: replace the model in that directory.
        dequantise: turn quantised layers into plain ones first.

    Returns:
        Number of merged sites.

    Raises:
        UsageError: the directory holds something else, or the adapter cannot be merged.
        TrainingError: the disk is full or cannot be written.
    """
    from capaft.adapter.merge import merge
    from capaft.model.modalities import has_towers

    path = Path(output).expanduser()
    _check_output(output, path, overwrite=overwrite)
    count = merge(saved.model, dequantise=dequantise)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = None
        try:
            with uninterrupted():
                aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
            aside.chmod(0o755)
            saved.model.save_pretrained(aside)  # type: ignore[operator]
            if has_towers(saved.model):
                _write_processors(saved, aside)
            saved.base.processor.save_pretrained(aside)
            write_atomically(aside / "README.md", _card(saved))
            with uninterrupted():
                _replace(path, aside)
        finally:
            if aside:
                shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise TrainingError(f"cannot write {output}: {error.strerror or error}; nothing was left there") from None
    return count


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

    source = locate_model(saved.base.base.name)
    common = {} if Path(source).is_dir() else {"local_files_only": hub.offline()}
    try:
        AutoProcessor.from_pretrained(source, revision=saved.base.base.revision, **common).save_pretrained(directory)
    except (OSError, ValueError, ImportError) as error:
        reason = f"the checkpoint's other processors cannot be loaded ({one_line(error)})"
        warnings.warn(f"only the tokenizer is written: {reason}", stacklevel=2)


def _card(saved: SavedRun) -> str:
    method = saved.file.header.method.method
    base = saved.file.base.name or "an unnamed base model"
    auto_class = saved.task.auto_class_for(saved.base.model.config)
    return f"""---
library_name: transformers
base_model: {base}
pipeline_tag: {saved.task.pipeline_tag}
---

# {base}, fine-tuned and merged

The weights of {base} with a {method} adapter added by capaft. It loads with transformers alone:

```python
from transformers import {auto_class}

model = {auto_class}.from_pretrained("path/to/this/directory")
```
{f"{chr(10)}Labels: {', '.join(saved.task.labels)}.{chr(10)}" if saved.task.labels else ""}"""
