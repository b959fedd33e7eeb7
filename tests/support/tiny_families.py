"""Tiny random models of transformers' families, by the names of their classes."""

from __future__ import annotations

from typing import Any

import tiny
import torch
import transformers

COMMON = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {"num_key_value_heads": 2}
BART = {f"{side}_{key}": n for side in ("encoder", "decoder") for key, n in (("layers", 2), ("attention_heads", 4))}
EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1, **GROUPED}


def model_of(name: str, device: str = "meta", **options: Any) -> Any:
    """A tiny random model of a family, such as `BertForSequenceClassification`."""
    kind = getattr(transformers, name)
    with torch.device(device):
        return tiny.build(kind, kind.config_class(**COMMON | options))
