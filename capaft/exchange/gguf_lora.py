"""An adapter as a LoRA of llama.cpp: pairs of factors under llama.cpp's names, in its order of rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from capaft.adapter.activation import get_adapter
from capaft.config.choices import FloatDtype
from capaft.exchange.gguf_file import gguf_library
from capaft.exchange.gguf_layouts import LAYOUTS, Layout
from capaft.exchange.low_rank_pairs import LowRankPair, low_rank_pairs
from capaft.model.names import unwrapped_model, without_wrappers
from capaft.support.errors import UsageError

if TYPE_CHECKING:
    from gguf import TensorNameMap

# The way of an adapter that llama.cpp cannot hold beside its base.
INSTEAD = "write one model with capaft merge, and convert that with llama.cpp's convert_hf_to_gguf.py"


@dataclass(frozen=True, eq=False)
class GgufLora:
    """An adapter as llama.cpp holds it.

    Attributes:
        architecture: llama.cpp's name for the kind of model.
        alpha: llama.cpp multiplies each pair by alpha over its rank.
        tensors: by name, float32: `lora_a`, `(rank, in)`, and `lora_b`, `(out, rank)`, one after the other; the
            `lora_a` of an embedding is `(in, rank)`.
    """

    architecture: str
    alpha: float
    tensors: dict[str, Tensor]


def gguf_lora(model: nn.Module, name: str = "default") -> GgufLora:
    """An adapter as llama.cpp's LoRA, exact: the same update of every weight.

    Args:
        model: a model with the adapter, which need not be active.
        name: the adapter's name.

    Raises:
        UsageError: the gguf package is not installed, or llama.cpp cannot hold the adapter exactly.
    """
    gguf = gguf_library()
    plan = get_adapter(model, name).plan
    if others := sorted({*plan.trained, *(site.path for site in plan.head.moved)}):
        more = f" and {len(others) - 1} more" if others[1:] else ""
        raise UsageError(f"a LoRA of llama.cpp has no place for {others[0]}{more}, which was trained too; {INSTEAD}")
    config: Any = getattr(unwrapped_model(model), "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    kind = getattr(config, "model_type", type(unwrapped_model(model)).__name__)
    if (layout := LAYOUTS.get(kind)) is None:
        raise UsageError(f"capaft does not know how llama.cpp lays out {kind}; {INSTEAD}")
    number = next((key for key, word in gguf.MODEL_ARCH_NAMES.items() if word == layout.architecture), None)
    if number is None:
        raise UsageError(f"this gguf package does not know {layout.architecture} models; pip install --upgrade gguf")
    names = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    try:
        pairs = low_rank_pairs(model, name)
    except UsageError as error:
        raise UsageError(f"{error}; {INSTEAD}") from None
    # With one rank for all, llama.cpp's factor is 1.
    alpha = float(max(pair.rank for pair in pairs))
    tensors: dict[str, Tensor] = {}
    for pair in pairs:
        tensor = _tensor_name(names, pair)
        down, up = _as_stored(pair, layout, config)
        tensors |= {f"{tensor}.lora_a": down, f"{tensor}.lora_b": up * (pair.rank / alpha)}
    return GgufLora(layout.architecture, alpha, tensors)


def check_range(lora: GgufLora, dtype: FloatDtype) -> None:
    """Refuse a dtype that cannot hold the values, which llama.cpp would compute with as infinities.

    Raises:
        UsageError: a value is beyond the dtype's largest.
    """
    most = torch.finfo(getattr(torch, dtype)).max
    for name, tensor in lora.tensors.items():
        if (largest := float(tensor.abs().max())) > most:
            raise UsageError(f"--dtype {dtype} holds values up to {most:,.0f}, and {name} has {largest:.3g}; drop it")


def _tensor_name(names: TensorNameMap, pair: LowRankPair) -> str:
    """llama.cpp's name of the weight of a pair.

    Raises:
        UsageError: it has none, or cannot add a LoRA to that one.
    """
    site = pair.site
    path = without_wrappers(site.module)
    if site.index is not None or site.kind not in ("linear", "embedding"):
        raise UsageError(f"{path}: only linear layers and embeddings go into a LoRA of llama.cpp; {INSTEAD}")
    # A model that also reads images keeps the part that llama.cpp has one level further down.
    in_file = path.replace("language_model.", "", 1)
    tensor = names.get_name(f"{in_file}.{site.parameter}", (f".{site.parameter}",))
    if tensor is None:
        raise UsageError(f"llama.cpp has no tensor for {path}; {INSTEAD}")
    return tensor


def _as_stored(pair: LowRankPair, layout: Layout, config: Any) -> tuple[Tensor, Tensor]:
    """The factors in llama.cpp's order: down `(rank, in)`, or `(in, rank)` of an embedding, and up `(out, rank)`."""
    order = layout.orders.get(pair.site.module.rpartition(".")[2])
    up = pair.up if order is None else pair.up[order(config, len(pair.up))]
    return (pair.down.T if pair.site.kind == "embedding" else pair.down).contiguous(), up.contiguous()
