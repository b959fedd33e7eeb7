"""Checkpoints that read more than text, as most chat models do: how they are loaded to write, and their text path."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from capaft.model.names import canonical_path, unwrapped_model
from capaft.support.errors import UsageError, one_line

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


def text_path(model: nn.Module) -> str:
    """The canonical path of the part that reads and writes text, in a model with towers; empty for other models."""
    bare: Any = unwrapped_model(model)
    config = getattr(bare, "config", None)
    if not any(getattr(config, tower, None) is not None for tower in _TOWERS) or not hasattr(bare, "get_decoder"):
        return ""
    decoder = bare.get_decoder()
    path = next((path for path, module in bare.named_modules() if module is decoder), "")
    return canonical_path(bare, path)


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
        fits, reason = False, one_line(error)
    if not fits:
        raise UsageError(f"--model {name} does not read text alone ({reason}); choose another --model")
