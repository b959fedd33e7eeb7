"""llama.cpp in numpy: the pairs of a LoRA, and the graph of its `llama` architecture, in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader
from numpy.typing import NDArray

Matrix = NDArray[Any]
Orders = Mapping[str, Callable[[Matrix], Matrix]]


def pairs(path: Path) -> tuple[float, dict[str, tuple[Matrix, Matrix]]]:
    """The alpha of a LoRA, and by the name of a weight its `lora_a` and `lora_b`."""
    reader = GGUFReader(path)
    tensors = {tensor.name: tensor.data.astype(np.float64) for tensor in reader.tensors}
    names = [name.removesuffix(".lora_a") for name in tensors if name.endswith(".lora_a")]
    found = {name: (tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"]) for name in names}
    assert len(tensors) == 2 * len(found)
    return float(reader.fields["adapter.lora.alpha"].contents()), found


def llama_logits(model: Any, tokens: list[int], orders: Orders, lora: Path | None) -> Matrix:
    """Logits `(tokens, vocabulary)` of a tiny Llama whose weights are as llama.cpp's converter leaves them.

    Each product with a weight `w` is `w x + alpha / rank b (a x)`, and rotary embeddings turn neighbours.
    """
    config = model.config
    weights = {name: parameter.detach().double().numpy() for name, parameter in model.named_parameters()}
    alpha, added = pairs(lora) if lora else (0.0, {})
    length, heads, kv = len(tokens), config.num_attention_heads, config.num_key_value_heads
    width = config.hidden_size // heads

    def product(tensor: str, module: str, inputs: Matrix) -> Matrix:
        weight = weights[f"{module}.weight"]
        order = orders.get(tensor.split(".")[-2])
        result = inputs @ (order(weight) if order else weight).T
        if tensor in added:
            down, up = added[tensor]
            result = result + alpha / len(down) * (inputs @ down.T) @ up.T
        return result

    def norm(inputs: Matrix, name: str) -> Matrix:
        scale = np.sqrt((inputs**2).mean(-1, keepdims=True) + config.rms_norm_eps)
        return inputs / scale * weights[f"{name}.weight"]

    def rotated(vectors: Matrix) -> Matrix:
        frequencies = config.rope_parameters["rope_theta"] ** (-np.arange(0, width, 2) / width)
        angles = np.arange(length)[:, None] * frequencies
        turned = (vectors[..., 0::2] + 1j * vectors[..., 1::2]) * np.exp(1j * angles)[:, None]
        return np.stack([turned.real, turned.imag], -1).reshape(vectors.shape)

    state = weights["model.embed_tokens.weight"][tokens]
    if "token_embd.weight" in added:
        down, up = added["token_embd.weight"]
        state = state + alpha / up.shape[1] * down[tokens] @ up.T
    for block in range(config.num_hidden_layers):
        path, tensor = f"model.layers.{block}", f"blk.{block}"
        inputs = norm(state, f"{path}.input_layernorm")
        q, k, v = (product(f"{tensor}.attn_{p}.weight", f"{path}.self_attn.{p}_proj", inputs) for p in "qkv")
        queries, keys = rotated(q.reshape(length, heads, width)), rotated(k.reshape(length, kv, width))
        values = v.reshape(length, kv, width)
        outputs = np.zeros((length, heads, width))
        for head in range(heads):
            scores = queries[:, head] @ keys[:, head * kv // heads].T / np.sqrt(width)
            scores[np.triu_indices(length, 1)] = -np.inf
            shares = np.exp(scores - scores.max(-1, keepdims=True))
            outputs[:, head] = shares / shares.sum(-1, keepdims=True) @ values[:, head * kv // heads]
        state = state + product(f"{tensor}.attn_output.weight", f"{path}.self_attn.o_proj", outputs.reshape(length, -1))
        inputs = norm(state, f"{path}.post_attention_layernorm")
        gate = product(f"{tensor}.ffn_gate.weight", f"{path}.mlp.gate_proj", inputs)
        up = product(f"{tensor}.ffn_up.weight", f"{path}.mlp.up_proj", inputs)
        state = state + product(f"{tensor}.ffn_down.weight", f"{path}.mlp.down_proj", gate / (1 + np.exp(-gate)) * up)
    return product("output.weight", "lm_head", norm(state, "model.norm"))
