"""Checkpoints that read more than text, as most chat models do: how they are loaded to write, and their text path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from capaft.model.names import unwrapped_model
from capaft.support.errors import UsageError, one_line
from capaft.support.out_of_memory import pass_on_exhaustion

WRITES = "AutoModelForCausalLM"
READS_IMAGES = "AutoModelForImageTextToText"
_TOWERS = ("vision_config", "audio_config")


def auto_class_of_writer(config: Any) -> str:
    """The transformers auto class that loads a checkpoint as what it was saved as: with its towers, if it has some.

    Args:
        config: the model's configuration, as transformers has it.
    """
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )

    kind = getattr(config, "model_type", "")
    reads_images = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(kind)
    if reads_images is None:
        return WRITES
    was_saved_so = reads_images in (getattr(config, "architectures", None) or ())
    return READS_IMAGES if was_saved_so or kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES else WRITES


def has_towers(model: nn.Module) -> bool:
    """True if a model that writes text also reads images or sound."""
    bare = unwrapped_model(model)
    return bool(_tower_configs(bare)) and hasattr(bare, "get_decoder")


def reads_text(model: nn.Module) -> Callable[[str], bool]:
    """A predicate on paths of modules of a model with towers: true in the part that reads and writes text.

    That is what the model calls its decoder, without any tower inside it.
    """
    bare: Any = unwrapped_model(model)
    decoder, configs = bare.get_decoder(), tuple(map(type, _tower_configs(bare)))
    modules = {path: module for path, module in bare.named_modules() if path}
    inside = next((f"{path}." for path, module in modules.items() if module is decoder), "")
    owners = (path for path, module in modules.items() if isinstance(getattr(module, "config", None), configs))
    towers = tuple(f"{path}." for path in owners)
    return lambda path: path.startswith(inside) and not path.startswith(towers)


def _tower_configs(model: nn.Module) -> list[Any]:
    configs = (getattr(getattr(model, "config", None), tower, None) for tower in _TOWERS)
    return [config for config in configs if isinstance(config, PreTrainedConfig)]


def check_reads_text_alone(model: Any, name: str | None) -> None:
    """Check that a model with towers reads a text without an image or a recording, and writes after each token.

    Raises:
        UsageError: it does not.
    """
    ids = torch.full((1, 2), 5, device=model.device)
    reason = "it does not write a token after each token"
    try:
        with torch.inference_mode():
            outputs = model(input_ids=ids, attention_mask=torch.ones_like(ids))
        fits = outputs.logits.shape[1] == ids.shape[1]
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        pass_on_exhaustion(error)
        fits, reason = False, one_line(error)
    if not fits:
        raise UsageError(f"--model {name} does not read text alone ({reason}); choose another --model")
