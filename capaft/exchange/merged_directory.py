"""A merged model as a plain Hugging Face directory, there as a whole or not at all."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capaft.config.local_paths import shared_name
from capaft.config.parts.model import ModelSettings
from capaft.model.load import BaseModel, locate_model
from capaft.model.modalities import has_towers
from capaft.model.origin import Origin
from capaft.support import hub
from capaft.support.directories import check_directory, written_whole
from capaft.support.errors import UsageError, one_line
from capaft.support.files import write_atomically
from capaft.support.markdown import fenced, front_matter, inline


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
    check_directory(output, path, "config.json", "a model", overwrite=overwrite)


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
        UsageError: the directory holds something else, or the base model.
        TrainingError: the disk is full or cannot be written.
    """
    check_output(output, path, overwrite=overwrite)
    base = Path(locate_model(merged.settings.model))
    if path.is_dir() and base.is_dir() and path.samefile(base):
        raise UsageError(f"--output {output} is the base model, which a merge reads; name another directory")
    with written_whole(output, path) as aside:
        write_weights(aside)
        if merged.dtype:
            _name_dtype(aside / "config.json", merged.dtype)
        if has_towers(merged.base.model):
            _write_processors(merged.settings, aside)
        merged.base.processor.save_pretrained(aside)
        write_atomically(aside / "README.md", _card(merged))


def write_configuration(model: Any, directory: Path) -> None:
    """Write all that `save_pretrained` writes of a model but its weights: also code that came with the checkpoint."""
    model.save_pretrained(directory, state_dict={})
    for file in directory.glob("*.safetensors*"):
        file.unlink()


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
