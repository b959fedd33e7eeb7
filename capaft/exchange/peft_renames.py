"""Keys that PEFT would rename while it loads them, as transformers does with those of older checkpoints.

A pattern that was written for old names may fit a new one as well; what is renamed by mistake is lost.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from capaft.exchange.peft_lora import PREFIX


def renamed_key(model: Any, keys: Iterable[str]) -> str | None:
    """The first of some keys of a LoRA that PEFT would rename for a model of transformers; None if it renames none."""
    try:
        from transformers.conversion_mapping import get_checkpoint_conversion_mapping, get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming, rename_source_key
    except ImportError:  # Older versions rename nothing.
        return None
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind is None or get_checkpoint_conversion_mapping(kind) is None:
        return None
    renamings = [entry for entry in get_model_conversion_mapping(model) if isinstance(entry, WeightRenaming)]
    for key in keys:
        name = key.removeprefix(PREFIX)
        renamed, _ = rename_source_key(name, renamings, [])
        # A prefix alone that is renamed away is put back.
        if ".lora_" in key and not name.endswith(renamed):
            return key
    return None
