"""PEFT makes a directory; PEFT's logits and those of the adapter that capaft makes of it are compared."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("peft")

from tiny import bert, gpt2
from tiny_peft import TEXT, edit_config, edit_tensors, images, llama, phi3, resnet, save_peft, vit
from transformers import MixtralConfig, MixtralForCausalLM

import capaft

CAUSAL = {"task_type": "CAUSAL_LM", "r": 4}
GPT2 = {**CAUSAL, "fan_in_fan_out": True}
CLASSES = {"task_type": "SEQ_CLS", "r": 4}


def _mixtral() -> Any:
    from tiny import build

    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 3, "num_experts_per_tok": 3}
    return build(MixtralForCausalLM, MixtralConfig(**sizes, **heads))


CASES: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "query and value": (llama, {**CAUSAL, "lora_alpha": 12, "target_modules": ["q_proj", "v_proj"]}),
    "all linear, rank-stabilised": (llama, {**CAUSAL, "use_rslora": True, "target_modules": "all-linear"}),
    "patterns": (
        llama,
        {
            **CAUSAL,
            "rank_pattern": {"q_proj": 2, r".*layers\.1\..*down_proj": 6},
            "alpha_pattern": {"layers.2.self_attn.v_proj": 32},
            "target_modules": r".*\.(q|v|down)_proj",
        },
    ),
    "some blocks": (llama, {**CAUSAL, "target_modules": ["q_proj", "o_proj"], "layers_to_transform": [0, 2]}),
    "but one": (llama, {**CAUSAL, "target_modules": ["q_proj"], "exclude_modules": r".*layers\.1.*"}),
    "embeddings and head": (llama, {**CAUSAL, "target_modules": ["q_proj", "embed_tokens", "lm_head"]}),
    "copies": (llama, {**CAUSAL, "target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm"]}),
    "tokens": (llama, {**CAUSAL, "target_modules": ["q_proj"], "trainable_token_indices": [3, 14]}),
    "tokens of a tied embedding": (
        lambda: llama(tied=True),
        {**CAUSAL, "target_modules": ["q_proj"], "trainable_token_indices": [3, 14]},
    ),
    "tied on purpose": (
        lambda: llama(tied=True),
        {**CAUSAL, "target_modules": ["q_proj", "embed_tokens", "lm_head"], "ensure_weight_tying": True},
    ),
    "parameters": (llama, {**CAUSAL, "target_modules": [], "target_parameters": ["q_proj.weight"]}),
    "dora": (llama, {**CAUSAL, "use_dora": True, "rank_pattern": {"q_proj": 2}, "target_modules": "all-linear"}),
    "dora in the head": (llama, {**CAUSAL, "use_dora": True, "target_modules": ["lm_head", "v_proj"]}),
    "fused": (phi3, {**CAUSAL, "target_modules": ["qkv_proj", "gate_up_proj", "down_proj"]}),
    "experts": (
        _mixtral,
        {**CAUSAL, "target_modules": ["q_proj"], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]},
    ),
    "transposed": (gpt2, {**GPT2, "target_modules": ["c_attn", "c_proj"]}),
    "transposed dora": (gpt2, {**GPT2, "use_dora": True, "target_modules": ["c_attn"]}),
    "trained biases": (gpt2, {**GPT2, "bias": "all", "target_modules": ["c_attn"]}),
    "biases of the adapter": (gpt2, {**GPT2, "lora_bias": True, "lora_alpha": 3, "target_modules": ["c_attn"]}),
    "classes": (bert, {**CLASSES, "target_modules": ["query", "value"]}),
    "classes and embeddings": (bert, {**CLASSES, "target_modules": ["word_embeddings", "dense"]}),
    "dora of embeddings": (bert, {**CLASSES, "use_dora": True, "target_modules": ["word_embeddings", "key"]}),
    "images": (vit, {"r": 4, "target_modules": ["projection"], "modules_to_save": ["classifier"]}),
    "narrow convolutions": (resnet, {"r": 4, "target_modules": ["convolution"], "modules_to_save": ["classifier"]}),
    "dora of convolutions": (vit, {"r": 4, "use_dora": True, "target_modules": ["projection"]}),
}


@pytest.mark.parametrize("name", CASES)
def test_the_imported_adapter_has_the_logits_of_peft(name: str, tmp_path: Path) -> None:
    make, options = CASES[name]
    model = make()
    inputs = images() if make in (vit, resnet) else TEXT
    expected = save_peft(model, tmp_path / "peft", inputs, **options)
    base = copy.deepcopy(model)
    with torch.no_grad():
        assert (model(**inputs).logits - expected).abs().max() > 1e-3
        capaft.import_peft(model, tmp_path / "peft")
        torch.testing.assert_close(model(**inputs).logits, expected, atol=1e-6, rtol=1e-6)
        capaft.save(model, tmp_path / "adapter.safetensors")
        capaft.load(base, tmp_path / "adapter.safetensors")
        torch.testing.assert_close(base(**inputs).logits, expected, atol=1e-6, rtol=1e-6)
        capaft.merge(base)
        torch.testing.assert_close(base(**inputs).logits, expected, atol=2e-6, rtol=1e-6)
    # All but the tensors; a label, and a pattern of ranks, come on top.
    size = (tmp_path / "adapter.safetensors").stat().st_size
    tensors = sum(tensor.nbytes for tensor in capaft.read(tmp_path / "adapter.safetensors").tensors.values())
    assert size - tensors < 2048 + 64 * len(capaft.read(tmp_path / "adapter.safetensors").tensors)


def test_what_peft_writes_in_the_same_form_is_kept(tmp_path: Path) -> None:
    """Rank, scale and matrices are PEFT's own where capaft has the same: no value is rounded."""
    from safetensors.torch import load_file

    model = llama()
    save_peft(model, tmp_path, TEXT, **CAUSAL, lora_alpha=12, use_rslora=True, target_modules=["q_proj"])
    adapter = capaft.import_peft(model, tmp_path)
    assert adapter.plan.stack.record() == {
        "method": "lora",
        "rank": 4,
        "alpha": 12.0,
        "rslora": True,
        "rank_pattern": [],
    }
    stored = load_file(tmp_path / "adapter_model.safetensors")
    for part, role in (("lora_A", "down"), ("lora_B", "up")):
        values = torch.cat([tensor.flatten() for name, tensor in sorted(stored.items()) if part in name])
        assert torch.equal(values, adapter.role_parameters[role].detach().flatten())


def test_ranks_without_room_in_a_header_are_widened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from capaft.exchange import peft_import

    model, ranks = llama(), {"q_proj": 2, "v_proj": 5}
    expected = save_peft(
        model, tmp_path, TEXT, **CAUSAL, rank_pattern=ranks, target_modules=["q_proj", "v_proj", "o_proj"]
    )
    monkeypatch.setattr(peft_import, "rank_pattern_of", lambda *_: None)
    adapter = capaft.import_peft(model, tmp_path)
    assert adapter.plan.stack.options_text() == "rank 5, alpha 8"
    with torch.no_grad():
        torch.testing.assert_close(model(**TEXT).logits, expected, atol=1e-6, rtol=1e-6)


def test_several_peft_adapters_on_one_model(tmp_path: Path) -> None:
    model = bert()
    logits = {}
    for name, module in (("one", "query"), ("other", "value")):
        logits[name] = save_peft(model, tmp_path / name, TEXT, **CLASSES, target_modules=[module])
    for name in logits:
        capaft.import_peft(model, tmp_path / name, name=name)
    for name, expected in logits.items():
        capaft.switch(model, name)
        with torch.no_grad():
            torch.testing.assert_close(model(**TEXT).logits, expected, atol=1e-6, rtol=1e-6)


def test_a_half_precision_file(tmp_path: Path) -> None:
    """PEFT reads it into the float32 of the base."""
    model = llama()
    save_peft(model, tmp_path, TEXT, **CAUSAL, target_modules=["q_proj"])
    edit_tensors(tmp_path, ".weight", torch.Tensor.bfloat16)
    from peft import PeftModel

    with torch.no_grad():
        expected = PeftModel.from_pretrained(copy.deepcopy(model), tmp_path)(**TEXT).logits
        capaft.import_peft(model, tmp_path)
        torch.testing.assert_close(model(**TEXT).logits, expected, atol=1e-6, rtol=1e-6)


REFUSED: dict[str, tuple[Callable[[], Any], dict[str, Any], dict[str, Any], str]] = {
    "a tied embedding": (
        lambda: llama(tied=True),
        {**CAUSAL, "target_modules": ["embed_tokens"]},
        {},
        "it adapts embed_tokens alone, which shares its weight with lm_head",
    ),
    "a copy of a tied head": (
        lambda: llama(tied=True),
        {**CAUSAL, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {},
        "it has a copy of lm_head.weight alone, which LlamaForCausalLM shares with embed_tokens.weight",
    ),
    "biases where there are none": (
        llama,
        {**CAUSAL, "lora_bias": True, "target_modules": ["q_proj"]},
        {},
        "where the model has none",
    ),
    "changed base weights": (
        llama,
        {**CAUSAL, "init_lora_weights": "pissa", "target_modules": ["q_proj"]},
        {},
        "it starts from pissa, which changes the base's weights",
    ),
    "statistics": (
        resnet,
        {"r": 1, "target_modules": ["convolution"], "modules_to_save": ["normalization"]},
        {},
        "statistics that no adapter file holds",
    ),
    "another model": (bert, {**CLASSES, "target_modules": ["query"]}, {"model": "llama"}, "has no module bert.encoder"),
    "other ranks": (llama, {**CAUSAL, "target_modules": ["q_proj"]}, {"r": 3}, "has rank 4, and the settings say 3"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_adapter_computes_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    make, options, edit, message = REFUSED[name]
    model = make()
    save_peft(model, tmp_path, images() if make is resnet else TEXT, **options)
    if edit.pop("model", None):
        model = llama()
    edit_config(tmp_path, **edit)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(capaft.AdapterFileError) as caught:
        capaft.import_peft(model, tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
