"""Which layers are found, in how many families, and what they are called."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
import transformers
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from transformers import AttentionInterface
from transformers.pytorch_utils import Conv1D

from capaft.errors import UsageError
from capaft.sites import Site, canonical, find

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
BART = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in (("layers", 2), ("attention_heads", 4))}


def model_of(name: str, device: str = "meta", **options: Any) -> Any:
    """A tiny random model of a family: `BertForSequenceClassification`, say."""
    kind = getattr(transformers, name)
    with torch.device(device):
        return tiny.build(kind, kind.config_class(**COMMON | options))


def ends(sites: tuple[Site, ...]) -> set[str]:
    """Last names of the sites, with the slices of fused layers."""
    return {site.path.rsplit(".", 1)[-1] for site in sites}


# Families. What is expected: the names of query and value, and how many attention blocks hold them.

FAMILIES: list[tuple[str, dict[str, Any], str, int]] = [
    ("BertForSequenceClassification", {}, "query value", 2),
    ("RobertaForSequenceClassification", {}, "query value", 2),
    ("XLMRobertaForTokenClassification", {}, "query value", 2),
    ("ElectraForSequenceClassification", {"embedding_size": 16}, "query value", 2),
    ("AlbertForSequenceClassification", {"embedding_size": 16}, "query value", 1),
    ("DistilBertForSequenceClassification", {"dim": 32, "n_heads": 4, "n_layers": 2}, "q_lin v_lin", 2),
    ("DebertaV2ForSequenceClassification", {}, "query_proj value_proj", 2),
    ("MPNetForSequenceClassification", {}, "q v", 2),
    ("ModernBertForSequenceClassification", {"cls_token_id": 1, "sep_token_id": 2}, "Wqkv#q Wqkv#v", 2),
    ("LlamaForCausalLM", GROUPED, "q_proj v_proj", 2),
    ("LlamaForSequenceClassification", GROUPED, "q_proj v_proj", 2),
    ("MistralForCausalLM", GROUPED, "q_proj v_proj", 2),
    ("Qwen2ForCausalLM", GROUPED, "q_proj v_proj", 2),
    ("Qwen3ForCausalLM", GROUPED, "q_proj v_proj", 2),
    ("GemmaForCausalLM", GROUPED | {"head_dim": 16}, "q_proj v_proj", 2),
    ("Phi3ForCausalLM", GROUPED, "qkv_proj#q qkv_proj#v", 2),
    ("GPT2LMHeadModel", {"n_inner": 64}, "c_attn#q c_attn#v", 2),
    ("GPT2ForSequenceClassification", {}, "c_attn#q c_attn#v", 2),
    ("OpenAIGPTLMHeadModel", {}, "c_attn#q c_attn#v", 2),
    ("OPTForCausalLM", {"ffn_dim": 64, "word_embed_proj_dim": 32}, "q_proj v_proj", 2),
    ("MptForCausalLM", {"d_model": 32, "n_heads": 4, "n_layers": 2}, "Wqkv#q Wqkv#v", 2),
    ("T5ForConditionalGeneration", {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_heads": 4, "num_layers": 2}, "q v", 6),
    ("BartForConditionalGeneration", {"d_model": 32, **BART}, "q_proj v_proj", 6),
    ("BartForSequenceClassification", {"d_model": 32, **BART}, "q_proj v_proj", 6),
    ("ViTForImageClassification", {"image_size": 8, "patch_size": 4}, "q_proj v_proj", 2),
    ("CLIPTextModelWithProjection", {}, "q_proj v_proj", 2),
]


@pytest.mark.parametrize(("name", "options", "expected", "blocks"), FAMILIES, ids=[each[0] for each in FAMILIES])
def test_query_and_value_are_found(name: str, options: dict[str, Any], expected: str, blocks: int) -> None:
    model = model_of(name, **options)
    sites = find(model, "qv")
    assert ends(sites) == set(expected.split())
    assert len(sites) == 2 * blocks
    assert [site.path for site in sites] == sorted({site.path for site in sites})
    for site in sites:
        weight = site.weight(model)
        assert weight.shape == (site.out_features, site.in_features)
        assert site.in_features == 32
        assert not site.path.startswith(model.base_model_prefix + ".")
        assert site.transposed == isinstance(model.get_submodule(site.module), Conv1D)


@pytest.mark.parametrize(("name", "options"), [each[:2] for each in FAMILIES], ids=[each[0] for each in FAMILIES])
def test_all_linear_is_every_linear_layer_but_the_head(name: str, options: dict[str, Any]) -> None:
    model = model_of(name, **options)
    sites = find(model, "all-linear")
    linear = {path for path, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))}
    head = linear - {site.module for site in sites}
    names = {"classifier", "score", "lm_head", "decoder", "dense", "out_proj", "pre_classifier", "text_projection"}
    assert {path.rsplit(".", 1)[-1] for path in head} <= names
    assert not any(path.startswith(model.base_model_prefix + ".") for path in head)
    assert all(site.whole and site.module in linear for site in sites)
    assert model.get_output_embeddings() not in [model.get_submodule(site.module) for site in sites]


# Fused projections: slices must be the rows that become the heads.

FUSED: list[tuple[str, dict[str, Any]]] = [
    ("GPT2LMHeadModel", {}),
    ("GPT2LMHeadModel", {"add_cross_attention": True, "hidden_size": 48}),
    ("Phi3ForCausalLM", GROUPED),
    ("Phi3ForCausalLM", {"num_key_value_heads": 1}),
    ("ModernBertForMaskedLM", {"cls_token_id": 1, "sep_token_id": 2}),
]


@pytest.mark.parametrize(("name", "options"), FUSED)
def test_slices_are_the_rows_of_the_heads(name: str, options: dict[str, Any]) -> None:
    model = model_of(name, "cpu", **options)
    seen: list[tuple[nn.Module, Tensor, Tensor]] = []
    inputs: dict[nn.Module, Tensor] = {}

    def spy(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
        seen.append((module, query, value))
        return query.transpose(1, 2), None

    AttentionInterface.register("spy", spy)
    model.set_attn_implementation("spy")
    sites = find(model, "qv")
    for site in sites:
        module = model.get_submodule(site.module)
        module.register_forward_pre_hook(lambda module, args: inputs.update({module: args[0]}))
    model(tiny.IDS)
    assert len(seen) == 2
    for site in sites:
        fused = model.get_submodule(site.module)
        ((query, value),) = [(q, v) for module, q, v in seen if fused in module.children()]
        heads = value if site.path.endswith("#v") else query
        sliced = inputs[fused] @ site.weight(model).T
        if getattr(fused, "bias", None) is not None:
            sliced = sliced + fused.bias[site.start : site.start + site.out_features]
        # At position 0 a rotary embedding turns nothing.
        torch.testing.assert_close(heads[:, :, 0].flatten(1), sliced[:, 0])
        if heads is value:
            torch.testing.assert_close(heads.transpose(1, 2).flatten(2), sliced)


@pytest.mark.parametrize(
    ("name", "options", "layer"),
    [
        ("GPTNeoXForCausalLM", {}, "query_key_value"),
        ("BloomForCausalLM", {"n_head": 4, "n_layer": 2}, "query_key_value"),
        ("FalconForCausalLM", {}, "query_key_value"),
        ("CodeGenForCausalLM", {"n_embd": 32, "n_head": 4, "n_layer": 2, "rotary_dim": 4}, "qkv_proj"),
        ("GPTBigCodeForCausalLM", {"multi_query": False}, "c_attn"),
        ("GPTBigCodeForCausalLM", {"multi_query": True}, "c_attn"),
    ],
)
def test_other_orders_of_heads_are_not_sliced(name: str, options: dict[str, Any], layer: str) -> None:
    model = model_of(name, **options)
    with pytest.raises(UsageError, match=rf"no layer of {name} matches query and value.*named: .*\b{layer}\b"):
        find(model, "qv")
    assert ends(find(model, layer)) == {layer}


# Patterns.


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("query", 2),
        ("query,value", 4),
        (" query , value ,", 4),
        ("attention.self.query", 2),
        ("layer.1.attention.output.dense", 1),
        ("dense", 7),
        ("output.dense,query", 6),
        ("encoder.layer.0.attention.self.key", 1),
        (r"re:layer\.0\..*\.(query|key)$", 2),
        ("re:^encoder", 12),
        ("re:(?i)QUERY", 2),
        ("all-linear", 13),
    ],
)
def test_patterns(targets: str, expected: int) -> None:
    model = tiny.bert()
    sites = find(model, targets)
    assert len(sites) == expected
    assert not any("classifier" in site.path for site in sites)
    assert sites == tuple(sorted(sites, key=lambda site: site.path))


@pytest.mark.parametrize("targets", ["uery", "self", "layer.1", "", ",", "re:$.", "classifier", "bert.encoder", "*"])
def test_what_matches_nothing_lists_the_layers(targets: str) -> None:
    with pytest.raises(UsageError, match=r"named: dense, key, query, value\. Choose .*--target-modules"):
        find(tiny.bert(), targets)


def test_a_bad_regular_expression() -> None:
    with pytest.raises(UsageError, match=r"--target-modules re:\( is not a regular expression: missing \)"):
        find(tiny.bert(), "re:(")


def test_a_regular_expression_cannot_hang() -> None:
    model = nn.Sequential()
    model.add_module("a" * 40 + "_query", nn.Linear(2, 2))
    with pytest.raises(UsageError, match="takes too long to match"):
        find(model, "re:^(a|a|aa)+$")


def test_no_linear_layers() -> None:
    with pytest.raises(UsageError, match="Sequential has no linear layers to adapt; choose --method full or head"):
        find(nn.Sequential(nn.Conv1d(2, 2, 1)), "qv")


def test_a_quantised_linear_layer_is_a_site() -> None:
    class Int8Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.in_features, self.out_features = 8, 6
            self.register_buffer("weight", torch.zeros(6, 8, dtype=torch.int8))

    model = nn.ModuleDict({"q_proj": Int8Linear(), "bilinear": nn.Bilinear(2, 2, 2)})
    assert find(model, "all-linear") == (Site("q_proj", "q_proj", 8, 6),)


# Names.


class Inside(nn.Module):
    """A wrapper that hides its model, as DDP does, under a name of the caller's."""

    def __init__(self, name: str, model: nn.Module) -> None:
        super().__init__()
        self.add_module(name, model)


WRAPPERS = {
    "module": lambda model: Inside("module", model),
    "twice": lambda model: Inside("module", Inside("_fsdp_wrapped_module", model)),
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "compiled inside": lambda model: Inside("module", torch.compile(model, backend="eager")),
    "checkpoint": checkpoint_wrapper,
}


def wrap_layers(model: Any) -> Any:
    for index, layer in enumerate(model.bert.encoder.layer):
        model.bert.encoder.layer[index] = checkpoint_wrapper(Inside("_fsdp_wrapped_module", layer))
    return model


@pytest.mark.parametrize("wrap", [*WRAPPERS.values(), wrap_layers], ids=[*WRAPPERS, "layers"])
@pytest.mark.parametrize("targets", ["qv", "all-linear", "attention.self.key", "re:^encoder.layer.1"])
def test_names_survive_wrappers(wrap: Any, targets: str) -> None:
    bare = tiny.bert()
    names = [canonical(bare, name) for name, _ in bare.named_parameters()]
    wanted = find(bare, targets)
    model = wrap(tiny.bert())
    assert [canonical(model, name) for name, _ in model.named_parameters()] == names
    found = find(model, targets)
    assert [site.path for site in found] == [site.path for site in wanted]
    for ours, theirs in zip(found, wanted, strict=True):
        assert torch.equal(ours.weight(model), theirs.weight(bare))


def test_names_are_those_of_the_bare_encoder() -> None:
    model = tiny.bert()
    assert find(model, "qv")[0].path == "encoder.layer.0.attention.self.query"
    assert find(model, "qv")[0].module == "bert.encoder.layer.0.attention.self.query"
    assert [site.path for site in find(model.bert, "qv")] == [site.path for site in find(model, "qv")]
    assert canonical(model, "classifier.weight") == "classifier.weight"


def test_renamed_modules_keep_their_old_names() -> None:
    model = tiny.bert()
    old = [site.path.replace("attention.self.query", "attn.q_proj") for site in find(model, "query")]
    rename = {"attn.q_proj": "attention.self.query"}
    for targets in ("q_proj", "re:q_proj$", "attn.q_proj"):
        assert [site.path for site in find(model, targets, rename)] == old
    assert [site.module for site in find(model, "q_proj", rename)] == [s.module for s in find(model, "query")]
    assert set(old) < {site.path for site in find(model, "qv", rename)}
    fused = find(tiny.gpt2(), "qv", {"attention.qkv": "attn.c_attn"})
    assert fused[0].path == "h.0.attention.qkv#q"
    assert find(model, "qv", {"xyz": "uer", "layers": "lay"}) == find(model, "qv")


def test_renaming_two_modules_to_one_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"--rename calls both .*self.query and .*self.value encoder"):
        find(tiny.bert(), "qv", {"query": "value"})
