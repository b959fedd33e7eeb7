"""PEFT adapters of tiny models, with random values in everything that PEFT trains."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import IDS, MASK, build
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

TEXT = {"input_ids": IDS, "attention_mask": MASK}
_DECODER: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def llama(*, tied: bool = False) -> Any:
    """A language model of three blocks, with an output head of its own or not."""
    return build(LlamaForCausalLM, LlamaConfig(**_DECODER, tie_word_embeddings=tied))


def phi3() -> Any:
    """A language model with fused projections."""
    return build(Phi3ForCausalLM, Phi3Config(**_DECODER))


def vit() -> Any:
    """An image classifier that cuts its input by a convolution."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    return build(ViTForImageClassification, ViTConfig(**sizes, image_size=16, patch_size=8, num_labels=3))


def resnet() -> Any:
    """An image classifier of convolutions, some of which are narrower than an adapter's rank."""
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=3)
    return build(ResNetForImageClassification, config)


def images() -> dict[str, torch.Tensor]:
    """Two images."""
    return {"pixel_values": torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))}


def save_peft(model: Any, directory: Path, inputs: dict[str, torch.Tensor], **options: Any) -> torch.Tensor:
    """Save a LoRA of PEFT on a copy of a model, and return the logits that it gives for some inputs."""
    adapted = get_peft_model(copy.deepcopy(model), LoraConfig(**options)).eval()
    generator = torch.Generator().manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if any(part in name for part in ("lora_", "modules_to_save", "trainable_tokens_delta")) or (
            parameter.requires_grad
        ):
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    adapted.save_pretrained(directory)
    with torch.no_grad():
        return adapted(**inputs).logits


def edit_config(directory: Path, **entries: Any) -> None:
    """Change entries of the settings in a PEFT directory."""
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def edit_tensors(directory: Path, ending: str, change: Callable[[torch.Tensor], torch.Tensor] | None) -> None:
    """Change the tensors of a PEFT directory whose names end so, or leave them out."""
    path = directory / "adapter_model.safetensors"
    tensors = load_file(path)
    for name in [name for name in tensors if name.endswith(ending)]:
        values = tensors.pop(name)
        if change:
            tensors[name] = change(values).contiguous()
    save_file(tensors, path, {"format": "pt"})
