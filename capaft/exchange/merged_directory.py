"""A merged model as a plain Hugging Face directory, there as a whole or not at all."""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capaft.config.local_paths import shared_name
from capaft.config.parts.model import ModelSettings
from capaft.model.load import BaseModel, locate_model
from capaft.model.modalities import has_towers
from capaft.model.origin import Origin
from capaft.support import hub
from capaft.support.errors import TrainingError, UsageError, one_line
from capaft.support.files import flush_directory, make_ordinary, write_atomically
from capaft.support.markdown import fenced, front_matter, inline
from capaft.support.signals import uninterrupted


@dataclass(frozen=True)
class MergedModel:
    """What a merged directory holds beside its weights.

    Attributes:
        base: the base model, merged, with its processor; its weights may be on disk.
        settings: those that it was loaded with.
        origin: its name and revision, as the adapter's file has them.
        method: the adapter's method, or those of several.
        auto_class: the transformers class that loads it.
        pipeline_tag: the hub's name of its task; empty if it has none.
        labels: the labels of its outputs.
        dtype: the dtype that its configuration is to name; None for that of the model.
    """

    base: BaseModel
    settings: ModelSettings
    origin: Origin
    method: str
    auto_class: str
    pipeline_tag: str
    labels: tuple[str, ...]
    dtype: str | None = None


def check_output(output: str, path: Path, *, overwrite: bool) -> None:
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
    output: str, path: Path, merged: MergedModel, write_weights: Callable[[Path], None], *, overwrite: bool = False
) -> None:
    """Write a merged model: weights, configuration with labels, processors and a model card.

    Args:
        output: the directory as the user names it.
        path: the directory.
        merged: what stands beside the weights.
        write_weights: writes weights, and the configuration if the model is in memory, into a directory.
        overwrite: replace the model in that directory.

    Raises:
        UsageError: the directory holds something else.
        TrainingError: the disk is full or cannot be written.
    """
    check_output(output, path, overwrite=overwrite)
    try:
        with _aside(path) as aside:
            write_weights(aside)
            if merged.dtype:
                _name_dtype(aside / "config.json", merged.dtype)
            if has_towers(merged.base.model):
                _write_processors(merged.settings, aside)
            merged.base.processor.save_pretrained(aside)
            write_atomically(aside / "README.md", _card(merged))
            make_ordinary(aside)
            flush_directory(aside)
            with uninterrupted():
                _replace(path, aside)
    except OSError as error:
        raise TrainingError(f"cannot write {output}: {error.strerror or error}; nothing was left there") from None


def write_configuration(model: Any, directory: Path) -> None:
    """Write all that `save_pretrained` writes of a model but its weights: also code that came with the checkpoint."""
    model.save_pretrained(directory, state_dict={})
    for file in directory.glob("*.safetensors*"):
        file.unlink()


@contextmanager
def _aside(path: Path) -> Iterator[Path]:
    """Gives a directory beside another one, which is gone afterwards unless it was renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = None
    try:
        with uninterrupted():
            aside = Path(tempfile.mkdtemp(prefix=f".{path.name[:40]}.", dir=path.parent))
        yield aside
    finally:
        if aside:
            shutil.rmtree(aside, ignore_errors=True)


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
    flush_directory(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _name_dtype(file: Path, dtype: str) -> None:
    """Have a configuration name the dtype that the base's does, for which transformers takes that of one tensor."""
    config = json.loads(file.read_text(encoding="utf-8"))
    if config.get("dtype") != dtype:
        write_atomically(file, json.dumps(config | {"dtype": dtype}, indent=2, sort_keys=True) + "\n")


def _write_processors(settings: ModelSettings, directory: Path) -> None:
    """Write the processors of a checkpoint that reads more than text, which the training did not need."""
    from transformers import AutoProcessor

    source = locate_model(settings.model)
    common: dict[str, Any] = {"revision": settings.revision, "trust_remote_code": settings.trust_remote_code}
    if not Path(source).is_dir():
        common["local_files_only"] = hub.offline()
    try:
        AutoProcessor.from_pretrained(source, **common).save_pretrained(directory)
    except (OSError, ValueError, ImportError) as error:
        reason = f"the checkpoint's other processors cannot be loaded ({one_line(error)})"
        warnings.warn(f"only the tokenizer is written: {reason}", stacklevel=2)


def _card(merged: MergedModel) -> str:
    name = inline(shared_name(merged.origin.name or "an unnamed base model"))
    metadata = {
        "library_name": "transformers",
        "base_model": merged.origin.hub_id,
        "pipeline_tag": merged.pipeline_tag,
    }
    code = f"""from transformers import {merged.auto_class}

model = {merged.auto_class}.from_pretrained("path/to/this/directory")"""
    labels = f"\nLabels: {', '.join(map(inline, merged.labels))}.\n" if merged.labels else ""
    return f"""{front_matter(metadata)}
# {name}, fine-tuned and merged

The weights of {name} with a {inline(merged.method)} adapter added by capaft. It loads with transformers alone:

{fenced(code, "python")}
{labels}"""
