"""A language model whose weights stay in its checkpoint's files, and are read one by one where they are needed."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from torch import nn

from capaft.model.checkpoint_config import check_config, check_label_count
from capaft.model.load import locate_model
from capaft.model.load_errors import explaining_load_errors
from capaft.model.modalities import auto_class_of_writer
from capaft.support import hub
from capaft.support.errors import UsageError


def load_offloaded_writer(name: str, folder: Path) -> nn.Module:
    """Load a model that writes texts without its weights.

    Its parameters have no values. An adapter can be loaded onto it all the same: the weights that tell whether it
    belongs to this model are fetched from the checkpoint.

    Args:
        name: a directory or a hub id.
        folder: for weights that a checkpoint does not store as the model has them.

    Raises:
        UsageError: the model does not exist, needs code of its own, or does not write texts.
    """
    import transformers

    source = locate_model(name)
    if Path(source).is_file():
        raise UsageError(f"{name} is a file; a checkpoint is a directory or a hub id")
    common: dict[str, Any] = {"trust_remote_code": False}
    if not Path(source).is_dir():
        common["local_files_only"] = hub.offline()
    with explaining_load_errors(name, source):
        check_label_count(source, name, **common)
        config = transformers.AutoConfig.from_pretrained(source, **common)
        check_config(config, name)
        auto_class: Any = getattr(importlib.import_module("transformers"), auto_class_of_writer(config))
        model = auto_class.from_pretrained(
            source, dtype="auto", device_map={"": "disk"}, offload_folder=str(folder), **common
        )
    model.eval()
    return model
