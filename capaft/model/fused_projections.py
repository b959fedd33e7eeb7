"""Rows of the query, the key and the value in a projection that computes several of them.

They follow from transformers' naming conventions and the widths of the layer and of the attention's output projection:

- contiguous, `[query | key | value]`, the common order, with narrower keys and values under grouped queries;
- grouped, the order of layers called `query_key_value`: for every key its queries, itself, and its value. With one
  query per key that is `[query | key | value]` per head, with a single key it is contiguous.

Orders that the names do not reveal (interleaved blocks, gates between the parts) are not sliced.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from capaft.model.layers import layer_kind, layer_widths
from capaft.model.site import Rows
from capaft.model.targets import in_attention

# Names of projections that compute one of the three.
PROJECTION_NAMES = {
    "q": frozenset(
        {"query", "q_proj", "q_lin", "query_proj", "q_linear", "q", "to_q", "wq", "linear_q", "q_attn", "Wq"}
        | {"project_q", "projection_query", "to_query", "q_head", "q_b_proj"}
    ),
    "k": frozenset(
        {"key", "k_proj", "k_lin", "key_proj", "k_linear", "k", "to_k", "wk", "linear_k", "Wk", "project_k"}
        | {"projection_key", "to_key", "k_head"}
    ),
    "v": frozenset(
        {"value", "v_proj", "v_lin", "value_proj", "v_linear", "v", "to_v", "wv", "linear_v", "Wv", "project_v"}
        | {"projection_value", "v_head"}
    ),
}
CONTIGUOUS = frozenset(["qkv", "Wqkv", "att_proj", "qkv_linear"])
HALVES = frozenset(["to_kv"])
OUTPUTS = frozenset(
    {"o_proj", "out_proj", "dense", "output", "o", "out_lin", "proj", "projection", "c_proj", "Wo", "to_out", "wo"}
    | {
        "linear_out",
        "output_proj",
        "projection_layer",
        "proj_out",
        "o_b_proj",
        "attention_out",
        "post_proj",
        "linear_o",
    }
    | {"resid_proj"}
)


def projection_rows(model: nn.Module, path: str, letters: str) -> dict[str, Rows] | None:
    """Rows of the chosen parts in a projection; empty if it is one of them as a whole, None if it has none.

    Args:
        model: the model.
        path: path of the projection in it.
        letters: some of q, k and v.
    """
    parent_path, _, name = path.rpartition(".")
    parent: Any = model.get_submodule(parent_path)
    if any(name in PROJECTION_NAMES[letter] for letter in letters):
        return {} if in_attention(path) or _beside_queries(parent) else None
    if name in HALVES or (name == "c_attn" and hasattr(parent, "q_attn")):
        half = layer_widths(parent.get_submodule(name))[1] // 2
        return {letter: Rows("kv".index(letter) * half, half, 2 * half) for letter in letters if letter in "kv"}
    if name == "in_proj_qkv" and (
        out := output_projection(parent)
    ):  # Linear attention: its values are as wide as the output.
        total, value = layer_widths(parent.get_submodule(name))[1], layer_widths(parent.get_submodule(out))[0]
        query = (total - value) // 2
        linear = {"q": Rows(0, query, total), "k": Rows(query, query, total), "v": Rows(2 * query, value, total)}
        return {letter: linear[letter] for letter in letters}
    layout = _layout(model, parent_path, parent, name)
    if layout is None:
        return None
    query, key_value, groups = layout
    stride = (query + 2 * key_value) // groups
    query_rows, key_rows = query // groups, key_value // groups
    rows = {
        "q": Rows(0, query_rows, stride, groups),
        "k": Rows(query_rows, key_rows, stride, groups),
        "v": Rows(query_rows + key_rows, key_rows, stride, groups),
    }
    return {letter: rows[letter] for letter in letters}


def output_projection(module: nn.Module) -> str | None:
    """Path, inside an attention, of the linear layer that makes its output; recognised by its name."""
    linear = (name for name, child in module.named_modules() if name and layer_kind(child) == "linear")
    outputs = [name for name in linear if name.rsplit(".", 1)[-1] in OUTPUTS]
    return outputs[-1] if outputs else None


def _layout(model: nn.Module, parent_path: str, parent: Any, name: str) -> tuple[int, int, int] | None:
    """Widths of query and key in a fused projection, and the number of groups; None if that is unknown."""
    module = parent.get_submodule(name)
    wide_in, wide_out = layer_widths(module)
    query = _query_width(model, parent_path, parent, name, wide_in)
    if (wide_out - query) % 2 or not 0 < wide_out - query <= 2 * query:
        return None
    key_value = (wide_out - query) // 2
    is_contiguous = (
        name in CONTIGUOUS
        or (name == "c_attn" and isinstance(module, Conv1D))
        or (name == "qkv_proj" and hasattr(parent, "num_key_value_heads"))
    )
    if is_contiguous:
        return query, key_value, 1
    is_grouped = (
        name == "query_key_value"
        or (name == "c_attn" and hasattr(parent, "multi_query"))
        or (name == "in_proj" and hasattr(parent, "q_bias") and hasattr(parent, "v_bias"))
    )
    heads = _heads(model, parent_path, parent)
    if not is_grouped or not heads or query % heads or key_value % (query // heads):
        return None
    groups = key_value // (query // heads)
    return (query, key_value, groups) if groups and heads % groups == 0 else None


def _query_width(model: nn.Module, parent_path: str, parent: nn.Module, name: str, wide_in: int) -> int:
    """Input width of the attention's output projection; without one, that of the fused projection."""
    siblings = {
        child: module for child, module in parent.named_children() if child != name and layer_kind(module) == "linear"
    }
    outputs = [module for child, module in siblings.items() if child in OUTPUTS]
    if outputs:
        return layer_widths(outputs[-1])[0]
    # As in BERT, where it stands beside the attention.
    output = getattr(model.get_submodule(parent_path.rpartition(".")[0]), "output", None) if parent_path else None
    dense = getattr(output, "dense", None)
    return layer_widths(dense)[0] if isinstance(dense, nn.Module) and layer_kind(dense) == "linear" else wide_in


def _heads(model: nn.Module, path: str, module: nn.Module) -> int | None:
    """The number of attention heads, from the attention or the configuration nearest to it."""
    while True:
        for holder in (module, getattr(module, "config", None)):
            for name in ("num_heads", "num_attention_heads", "n_heads", "n_head", "num_head"):
                heads = getattr(holder, name, None)
                if isinstance(heads, int) and heads > 0:
                    return heads
        if not path:
            return None
        path = path.rpartition(".")[0]
        module = model.get_submodule(path)


def _beside_queries(parent: nn.Module) -> bool:
    """True if a module has a query projection among its children; elsewhere `value` means something else."""
    return any(
        name in PROJECTION_NAMES["q"] and layer_kind(child) == "linear" for name, child in parent.named_children()
    )
