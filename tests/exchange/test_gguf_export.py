"""LoRAs of llama.cpp: what is read back from the file is the update, in llama.cpp's order, written out row by row."""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tiny
import tiny_llama_cpp
import torch
from gguf import GGUFReader
from tiny_families import model_of
from tiny_llama_cpp import Matrix

import capaft
from capaft.model.origin import Origin
from capaft.support.errors import TrainingError, UsageError

GROUPED = {"num_key_value_heads": 2}
UNTIED = {"tie_word_embeddings": False}
CONV = {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False}
FALCON = {"new_decoder_architecture": True, "num_kv_heads": 2, "alibi": False}
LLAMA_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
GPT2_NAMES = {"attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down"}
FUSED_NAMES = {"qkv_proj": "attn_qkv", "o_proj": "attn_output", "gate_up_proj": "ffn_up", "down_proj": "ffn_down"}
BLOOM_NAMES = {
    "query_key_value": "attn_qkv",
    "attention.dense": "attn_output",
    "dense_h_to_4h": "ffn_up",
    "dense_4h_to_h": "ffn_down",
}
LFM_NAMES = {
    "conv.in_proj": "shortconv.in_proj",
    "conv.out_proj": "shortconv.out_proj",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_output",
    "feed_forward.w1": "ffn_gate",
    "feed_forward.w3": "ffn_up",
    "feed_forward.w2": "ffn_down",
}


def interleaved(heads: int) -> Callable[[Matrix], Matrix]:
    """Rows of each head with its two halves alternating."""

    def order(matrix: Matrix) -> Matrix:
        result, width = np.empty_like(matrix), len(matrix) // heads
        for head in range(heads):
            for pair in range(width // 2):
                for half in range(2):
                    result[head * width + 2 * pair + half] = matrix[head * width + half * (width // 2) + pair]
        return result

    return order


def sorted_by_part(heads: int, groups: int) -> Callable[[Matrix], Matrix]:
    """Rows of groups of queries, a key and a value: all queries, all keys, all values."""

    def order(matrix: Matrix) -> Matrix:
        each = heads // groups
        width = len(matrix) // groups // (each + 2)
        rows: list[Matrix] = []
        for parts in (range(each), [each], [each + 1]):
            for group in range(groups):
                for part in parts:
                    start = (group * (each + 2) + part) * width
                    rows.extend(matrix[start : start + width])
        return np.stack(rows)

    return order


ROTARY = {"attn_q": interleaved(4), "attn_k": interleaved(2)}
# By class: its options, llama.cpp's name for it, names of its layers, and the weights whose rows llama.cpp moves.
FAMILIES: dict[str, tuple[dict[str, Any], str, dict[str, str], dict[str, Callable[[Matrix], Matrix]]]] = {
    "LlamaForCausalLM": (GROUPED, "llama", LLAMA_NAMES, ROTARY),
    "MistralForCausalLM": (GROUPED, "llama", LLAMA_NAMES, ROTARY),
    "GraniteForCausalLM": (GROUPED, "granite", LLAMA_NAMES, ROTARY),
    "Qwen2ForCausalLM": (GROUPED, "qwen2", LLAMA_NAMES, {}),
    "Gemma2ForCausalLM": ({**GROUPED, "head_dim": 8}, "gemma2", LLAMA_NAMES, {}),
    "Phi3ForCausalLM": (GROUPED, "phi3", FUSED_NAMES, {}),
    "Lfm2ForCausalLM": ({**GROUPED, **CONV}, "lfm2", LFM_NAMES, {}),
    "BloomForCausalLM": ({"n_head": 4, "n_layer": 2}, "bloom", BLOOM_NAMES, {"attn_qkv": sorted_by_part(4, 4)}),
    "GPTNeoXForCausalLM": ({}, "gptneox", BLOOM_NAMES, {"attn_qkv": sorted_by_part(4, 4)}),
    "FalconForCausalLM": (
        FALCON,
        "falcon",
        BLOOM_NAMES,
        {"attn_qkv": sorted_by_part(4, 2)},
    ),
}


def adapted(model: Any, method: str = "lora", **options: Any) -> Any:
    tiny.scramble(capaft.attach(model, method, **{"rank": 3, "seed": 5, "targets": "all-linear", **options}))
    return model


def updates(model: Any) -> dict[str, Matrix]:
    """What merging adds to each weight of the base, `(out, in)`."""
    merged = copy.deepcopy(model)
    capaft.merge(merged)
    with capaft.disabled(model):
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    changed = {}
    for name, parameter in merged.named_parameters():
        change = parameter.detach() - before[name]
        if change.abs().max() > 0:
            is_transposed = type(merged.get_submodule(name.rpartition(".")[0])).__name__ == "Conv1D"
            changed[name.removesuffix(".weight")] = (change.T if is_transposed else change).double().numpy()
    return changed


def compare(model: Any, path: Path, names: dict[str, str], orders: dict[str, Any]) -> GGUFReader:
    """Compare the products in a file with the updates, under llama.cpp's names and in its order."""
    reader, (alpha, pairs) = GGUFReader(path), tiny_llama_cpp.pairs(path)
    changes = updates(model)
    expected = {}
    for module, change in changes.items():
        (layer,) = (name for end, name in names.items() if module.endswith(end))
        (block,) = re.findall(r"\.(\d+)\.", module)
        expected[f"blk.{block}.{layer}.weight"] = orders.get(layer, lambda matrix: matrix)(change)
    assert pairs.keys() == expected.keys()
    for tensor, (down, up) in pairs.items():
        np.testing.assert_allclose(alpha / len(down) * up @ down, expected[tensor], atol=2e-6, err_msg=tensor)
    return reader


@pytest.mark.parametrize("name", FAMILIES)
def test_the_file_holds_the_update_in_the_order_of_llama_cpp(name: str, tmp_path: Path) -> None:
    options, architecture, names, orders = FAMILIES[name]
    model = adapted(model_of(name, "cpu", **options))
    capaft.export_gguf(model, tmp_path / "lora.gguf")
    reader = compare(model, tmp_path / "lora.gguf", names, orders)
    fields = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert fields == {
        "general.architecture": architecture,
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": 3.0,
    }


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("vera", {"rank": 4}),
        ("lora+nola", {"k": 8}),
        ("capaboost", {"copies": 3}),
        ("lora+nola+capaboost", {"k": 8, "copies": 3, "rslora": True}),
        ("lora", {"rank_pattern": ["q_proj=5", "down_proj=2"]}),
        ("capaboost", {"targets": "qv", "layers": "1"}),
    ],
)
def test_every_stack_with_one_alpha_for_all(method: str, options: dict[str, Any], tmp_path: Path) -> None:
    model = adapted(model_of("LlamaForCausalLM", "cpu", **GROUPED), method, **options)
    lora = capaft.export_gguf(model, tmp_path / "lora.gguf")
    compare(model, tmp_path / "lora.gguf", LLAMA_NAMES, ROTARY)
    assert lora.alpha == max(len(t) for name, t in lora.tensors.items() if name.endswith("lora_a"))


def test_slices_of_gpt2_in_its_transposed_layers(tmp_path: Path) -> None:
    model = adapted(tiny.gpt2(), targets="qv")
    capaft.export_gguf(model, tmp_path / "lora.gguf")
    compare(model, tmp_path / "lora.gguf", GPT2_NAMES, {})


@pytest.mark.parametrize("targets", ["all-linear", "embed_tokens,q_proj,down_proj"])
def test_the_graph_of_llama_cpp_gives_the_logits(targets: str, tmp_path: Path) -> None:
    model = adapted(model_of("LlamaForCausalLM", "cpu", **GROUPED, **UNTIED), "lora+nola", k=8, targets=targets)
    capaft.export_gguf(model, tmp_path / "lora.gguf")
    with torch.no_grad():
        expected = tiny.logits(model)[0].numpy()
        with capaft.disabled(model):
            without = tiny.logits(model)[0].numpy()
    order = {"attn_q": interleaved(4), "attn_k": interleaved(2)}
    with capaft.disabled(model):
        found = tiny_llama_cpp.llama_logits(model, tiny.IDS[0].tolist(), order, tmp_path / "lora.gguf")
        base = tiny_llama_cpp.llama_logits(model, tiny.IDS[0].tolist(), order, None)
    np.testing.assert_allclose(base, without, atol=2e-6)
    np.testing.assert_allclose(found, expected, atol=2e-6)
    assert abs(expected - without).max() > 1e-3


def test_values_beyond_a_dtype_are_refused(tmp_path: Path) -> None:
    model = model_of("LlamaForCausalLM", "cpu")
    adapter = tiny.scramble(capaft.attach(model, "lora", rank=2))
    adapter.role_parameters["down"].data[0] = 1e5
    with pytest.raises(UsageError, match=r"dtype float16 holds values up to 65,504, and blk\.0\..*lora_a has 1e\+05"):
        capaft.export_gguf(model, tmp_path / "lora.gguf", dtype="float16")
    assert not list(tmp_path.iterdir())
    capaft.export_gguf(model, tmp_path / "lora.gguf", dtype="bfloat16")


@pytest.mark.parametrize(("dtype", "error"), [("float16", 5e-4), ("bfloat16", 4e-3)])
def test_smaller_dtypes_round_once(dtype: Any, error: float, tmp_path: Path) -> None:
    model = adapted(model_of("LlamaForCausalLM", "cpu"))
    lora = capaft.export_gguf(model, tmp_path / "lora.gguf", dtype=dtype)
    whole = capaft.export_gguf(model, tmp_path / "whole.gguf")
    assert (tmp_path / "lora.gguf").stat().st_size < 0.6 * (tmp_path / "whole.gguf").stat().st_size
    for tensor in GGUFReader(tmp_path / "lora.gguf").tensors:
        assert tensor.tensor_type.name == {"float16": "F16", "bfloat16": "BF16"}[dtype]
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_allclose(values, lora.tensors[tensor.name].numpy(), rtol=error, atol=1e-7)
        assert torch.equal(lora.tensors[tensor.name], whole.tensors[tensor.name])


def test_the_same_adapter_is_the_same_file_and_names_a_base_of_the_hub(tmp_path: Path) -> None:
    model = adapted(model_of("LlamaForCausalLM", "cpu"))
    for name in ("one", "two"):
        capaft.export_gguf(model, tmp_path / name, base=Origin("HuggingFaceTB/SmolLM2-135M"))
    capaft.export_gguf(model, tmp_path / "local", base=Origin("/home/me/secret/model"))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    fields = GGUFReader(tmp_path / "one").fields
    assert fields["general.base_model.0.repo_url"].contents() == "https://huggingface.co/HuggingFaceTB/SmolLM2-135M"
    assert b"secret" not in (tmp_path / "local").read_bytes()


def moe() -> Any:
    return model_of("Qwen2MoeForCausalLM", "cpu", num_experts=2, num_experts_per_tok=1, moe_intermediate_size=8)


@pytest.mark.parametrize(
    ("make", "method", "options", "says"),
    [
        (lambda: model_of("LlamaForCausalLM", "cpu"), "dora", {}, "dora has no pair of factors"),
        (lambda: model_of("LlamaForCausalLM", "cpu"), "prefix", {"targets": ""}, "prefix has no pair of factors"),
        (lambda: model_of("LlamaForCausalLM", "cpu"), "ia3", {"targets": ""}, "ia3 has no pair of factors"),
        (lambda: model_of("BertModel", "cpu"), "lora", {}, "does not know how llama.cpp lays out bert"),
        (tiny.bert, "lora", {"head": ["classifier.weight", "classifier.bias"]}, "no place for classifier.bias and 1"),
        (
            lambda: model_of("Lfm2ForCausalLM", "cpu", **CONV),
            "lora",
            {"targets": "conv.conv", "rank": 1},
            "only linear layers",
        ),
        (moe, "lora", {"rank": 1}, "does not know how llama.cpp lays out qwen2_moe"),
    ],
)
def test_what_llama_cpp_cannot_hold(
    make: Callable[[], Any], method: str, options: dict[str, Any], says: str, tmp_path: Path
) -> None:
    model = make()
    capaft.attach(model, method, **{"targets": "all-linear", **options})
    with pytest.raises(UsageError, match=re.escape(says)) as caught:
        capaft.export_gguf(model, tmp_path / "lora.gguf")
    assert "capaft merge" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_the_file_is_there_whole_or_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, path = adapted(model_of("LlamaForCausalLM", "cpu")), tmp_path / "lora.gguf"
    path.write_text("my notes")
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="something else"):
            capaft.export_gguf(model, path, overwrite=overwrite)
    path.unlink()
    capaft.export_gguf(model, path)
    before = path.read_bytes()
    with pytest.raises(UsageError, match="overwrite"):
        capaft.export_gguf(model, path)

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(gguf.GGUFWriter, "write_tensors_to_file", fail)
        with pytest.raises(TrainingError, match="No space left"):
            capaft.export_gguf(model, path, overwrite=True)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    capaft.export_gguf(model, path, overwrite=True)
    assert path.read_bytes() == before
    with pytest.raises(UsageError, match="dtype must be one of"):
        capaft.export_gguf(model, path, dtype="q4", overwrite=True)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UsageError, match="pip install gguf"):
        capaft.export_gguf(model, tmp_path / "other.gguf")
