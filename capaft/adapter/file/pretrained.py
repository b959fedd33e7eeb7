"""`model.save_pretrained` of a model with adapters: the base model as it was, and each adapter's own file beside it.

The trainer of transformers writes its checkpoints with the same method and reads them back into the adapted model. In
their directories, and only there, the adapters' tensors stand among the weights as well.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from capaft.adapter.activation import disabled
from capaft.adapter.file.save_load import save
from capaft.adapter.module import adapters
from capaft.model.names import CHILD_PREFIX
from capaft.support.errors import TrainingError

# Of transformers' `PREFIX_CHECKPOINT_DIR`.
_CHECKPOINT = re.compile(r"checkpoint-\d+")


def adapter_file_name(name: str) -> str:
    """The file of an adapter beside its base model."""
    return "adapter.safetensors" if name == "default" else f"adapter-{name}.safetensors"


def save_pretrained(
    model: Any,
    save_directory: str | Path,
    is_main_process: bool = True,
    state_dict: Mapping[str, Any] | None = None,
    **options: Any,
) -> None:
    """Write the base model, with its own head and labels, and the adapters' files.

    `capaft.load` puts an adapter back on the model that `from_pretrained` reads. For one plain model with the adapter's
    update in its weights, call `capaft.merge` first.

    Args:
        model: a model of transformers with adapters.
        save_directory: the directory to write.
        is_main_process: write the files; False in all processes but one.
        state_dict: the tensors of the model; by default as they are now.
        **options: of the model's own `save_pretrained`.

    Raises:
        TrainingError: an adapter has a parameter that is not finite.
    """
    directory = Path(save_directory)
    is_checkpoint = _CHECKPOINT.fullmatch(directory.name) is not None
    if is_main_process and not directory.is_file():
        for name in adapters(model):
            _save_beside(model, directory, name, is_checkpoint=is_checkpoint)
    with disabled(model):
        state: Mapping[str, Any] = model.state_dict() if state_dict is None else state_dict
        if not is_checkpoint:
            state = {key: value for key, value in state.items() if CHILD_PREFIX not in key}
        type(model).save_pretrained(model, save_directory, is_main_process, dict(state), **options)


def _save_beside(model: nn.Module, directory: Path, name: str, *, is_checkpoint: bool) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    try:
        save(model, directory / adapter_file_name(name), name=name)
    except TrainingError as error:
        # A checkpoint of a run that diverges is still a checkpoint.
        if not is_checkpoint:
            raise
        warnings.warn(str(error), stacklevel=5)
