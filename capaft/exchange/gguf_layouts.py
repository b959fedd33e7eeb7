"""The layouts of llama.cpp: the architecture that a model becomes there, and the rows that its converter reorders.

llama.cpp's converter keeps most weights as transformers has them. It reorders the rows of some: rotary embeddings that
turn neighbours instead of halves need the rows of each head's queries and keys interleaved, and a projection that holds
query, key and value head by head is sorted into all queries, all keys, all values. Rows of a weight are rows of the up
factor, so an adapter follows exactly. Names of tensors come from the maps of the `gguf` package.

A model type stands here only if its adapter was compared with what llama.cpp's own converter makes of the same update,
and its effect with the model's in llama.cpp.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

# From a configuration and a number of rows to the order in which llama.cpp has them.
RowOrder = Callable[[Any, int], Tensor]


@dataclass(frozen=True)
class Layout:
    """The form that a type of model takes in llama.cpp.

    Attributes:
        architecture: its name there.
        orders: by the last name of a layer's path, the order of its rows; others keep theirs.
    """

    architecture: str
    orders: Mapping[str, RowOrder] = field(default_factory=dict)


def _interleaved(heads: int, rows: int) -> Tensor:
    """The rows of `heads` heads, in each of which the two halves of its rows alternate."""
    return torch.arange(rows).view(heads, 2, rows // heads // 2).transpose(1, 2).flatten()


def _by_part(groups: int, queries: int, rows: int) -> Tensor:
    """The rows of groups `[queries | key | value]`: all queries, then all keys, then all values."""
    grouped = torch.arange(rows).view(groups, queries + 2, rows // groups // (queries + 2))
    return torch.cat([grouped[:, :queries].flatten(), grouped[:, queries].flatten(), grouped[:, queries + 1].flatten()])


def _key_value_heads(config: Any) -> int:
    return getattr(config, "num_key_value_heads", None) or config.num_attention_heads


def _falcon_rows(config: Any, rows: int) -> Tensor:
    if config.new_decoder_architecture:
        groups = config.num_kv_heads
    else:
        groups = 1 if config.multi_query else config.num_attention_heads
    return _by_part(groups, config.num_attention_heads // groups, rows)


_ROTARY: dict[str, RowOrder] = {
    "q_proj": lambda config, rows: _interleaved(config.num_attention_heads, rows),
    "k_proj": lambda config, rows: _interleaved(_key_value_heads(config), rows),
}
_BY_HEAD: dict[str, RowOrder] = {
    "query_key_value": lambda config, rows: _by_part(config.num_attention_heads, 1, rows),
}

# By the model type in the configuration of transformers.
LAYOUTS: dict[str, Layout] = {
    "apertus": Layout("apertus"),
    "arcee": Layout("arcee", _ROTARY),
    "bloom": Layout("bloom", _BY_HEAD),
    "cohere": Layout("command-r"),
    "cohere2": Layout("cohere2"),
    "ernie4_5": Layout("ernie4_5"),
    "exaone4": Layout("exaone4"),
    "falcon": Layout("falcon", {"query_key_value": _falcon_rows}),
    "gemma": Layout("gemma"),
    "gemma2": Layout("gemma2"),
    "gemma3_text": Layout("gemma3"),
    "glm": Layout("chatglm"),
    "glm4": Layout("glm4"),
    "gpt2": Layout("gpt2"),
    "gpt_bigcode": Layout("starcoder"),
    "gpt_neox": Layout("gptneox", _BY_HEAD),
    "granite": Layout("granite", _ROTARY),
    "hunyuan_v1_dense": Layout("hunyuan-dense"),
    "jais2": Layout("jais2"),
    "lfm2": Layout("lfm2"),
    "llama": Layout("llama", _ROTARY),
    "ministral3": Layout("mistral3", _ROTARY),
    "mistral": Layout("llama", _ROTARY),
    "mpt": Layout("mpt"),
    "nemotron": Layout("nemotron"),
    "olmo": Layout("olmo", _ROTARY),
    "olmo2": Layout("olmo2"),
    "olmo3": Layout("olmo2"),
    "phi": Layout("phi2"),
    "phi3": Layout("phi3"),
    "qwen2": Layout("qwen2"),
    "qwen3": Layout("qwen3"),
    "seed_oss": Layout("seed_oss"),
    "smollm3": Layout("smollm3", _ROTARY),
    "stablelm": Layout("stablelm"),
    "starcoder2": Layout("starcoder2"),
    "t5": Layout("t5"),
    "mt5": Layout("t5"),
}
