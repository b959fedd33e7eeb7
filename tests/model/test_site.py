"""Which layers are found, in how many families, and what they are called."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from tiny_families import BART, GROUPED, model_of
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from transformers.pytorch_utils import Conv1D

from capaft.model.names import canonical_path
from capaft.model.site import Rows, Site
from capaft.model.targets import Targets
from capaft.model.weight_sites import find_weight_sites as find_sites
from capaft.support.errors import UsageError


def find(model: nn.Module, targets: str, rename: dict[str, str] | None = None) -> tuple[Site, ...]:
    return find_sites(model, Targets(targets), rename)


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
        assert not site.parametrised


@pytest.mark.parametrize(("name", "options"), [each[:2] for each in FAMILIES], ids=[each[0] for each in FAMILIES])
def test_all_linear_is_every_linear_layer_but_the_head(name: str, options: dict[str, Any]) -> None:
    model = model_of(name, **options)
    sites = find(model, "all-linear")
    linear = {path for path, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))}
    head = linear - {site.module for site in sites}
    names = {"classifier", "score", "lm_head", "decoder", "dense", "out_proj", "pre_classifier", "text_projection"}
    assert {path.rsplit(".", 1)[-1] for path in head} <= names
    assert not any(path.startswith(model.base_model_prefix + ".") for path in head)
    assert all(site.rows is None and site.module in linear for site in sites)
    assert model.get_output_embeddings() not in [model.get_submodule(site.module) for site in sites]


# Fused projections: slices must be the rows that become queries and values, whatever their order.

CODEGEN = {"n_embd": 32, "n_head": 4, "n_layer": 2, "rotary_dim": 4}
FUSED: list[tuple[str, dict[str, Any], str]] = [
    ("GPT2LMHeadModel", {}, "c_proj"),
    ("GPT2LMHeadModel", {"add_cross_attention": True, "hidden_size": 48}, "c_proj"),
    ("OpenAIGPTLMHeadModel", {}, "c_proj"),
    ("Phi3ForCausalLM", GROUPED, "o_proj"),
    ("Phi3ForCausalLM", {"num_key_value_heads": 1}, "o_proj"),
    ("ModernBertForMaskedLM", {"cls_token_id": 1, "sep_token_id": 2}, "Wo"),
    ("MptForCausalLM", {"d_model": 32, "n_heads": 4, "n_layers": 2}, "out_proj"),
    ("GPTNeoXForCausalLM", {}, "dense"),
    ("BloomForCausalLM", {"n_head": 4, "n_layer": 2}, "dense"),
    ("PersimmonForCausalLM", {}, "dense"),
    ("FalconForCausalLM", {"multi_query": False, "new_decoder_architecture": False}, "dense"),
    ("FalconForCausalLM", {"multi_query": True, "new_decoder_architecture": False}, "dense"),
    ("FalconForCausalLM", {"num_kv_heads": 2, "new_decoder_architecture": True}, "dense"),
    ("GPTBigCodeForCausalLM", {"multi_query": False}, "c_proj"),
    ("GPTBigCodeForCausalLM", {"multi_query": True}, "c_proj"),
]


@pytest.mark.parametrize(("name", "options", "output"), FUSED, ids=lambda each: each if isinstance(each, str) else "")
def test_slices_are_the_rows_of_query_and_value(name: str, options: dict[str, Any], output: str) -> None:
    """A value changed at a position reaches those after it, a query only its own; without values nothing comes out."""
    model = model_of(name, "cpu", **options)
    sites = [site for site in find(model, "qv") if ".0." in site.path and "cross" not in site.path]
    assert [site.path.rpartition("#")[2] for site in sites] == ["q", "v"]
    module = model.get_submodule(sites[0].module)
    around = model.get_submodule(sites[0].module.rpartition(".")[0])
    seen: list[Tensor] = []
    around.get_submodule(output).register_forward_pre_hook(lambda _, args: seen.append(args[0]))

    def attended(change: Callable[[Tensor], None] | None = None) -> Tensor:
        """What the first attention hands to its output projection, `(batch, tokens, width)`."""
        seen.clear()

        def hook(_: nn.Module, args: Any, result: Tensor) -> Tensor:
            result = result.clone()
            if change:
                change(result)
            return result

        handle = module.register_forward_hook(hook)
        model(tiny.IDS)
        handle.remove()
        return seen[0].reshape(*tiny.IDS.shape, -1)

    def changed_at(site: Site, position: int) -> list[int]:
        """Positions whose output changes when the site's part of one position does."""
        assert site.rows is not None

        def change(result: Tensor) -> None:
            part = site.rows.view(result, -1)[:, position]
            part.copy_(part * 3 + 1)

        return (attended(change) - attended()).abs().amax((0, 2)).nonzero().flatten().tolist()

    query, value = sites
    assert changed_at(query, 3) == [3]
    assert set(changed_at(value, 3)) >= {3, 4, 5, 6, 7}
    assert attended(lambda result: value.rows.view(result, -1).zero_()).abs().max() == 0
    assert (query.weight(model).shape, value.weight(model).shape) == (
        (query.rows.count, 32 if "hidden_size" not in options else 48),
        (value.rows.count, query.in_features),
    )


@pytest.mark.parametrize(("name", "options", "layer"), [("CodeGenForCausalLM", CODEGEN, "qkv_proj")])
def test_other_orders_of_heads_are_not_sliced(name: str, options: dict[str, Any], layer: str) -> None:
    model = model_of(name, **options)
    with pytest.raises(UsageError, match=rf"no layer of {name} matches query and value.*named: .*\b{layer}\b"):
        find(model, "qv")
    assert ends(find(model, layer)) == {layer}


def test_rows_in_groups() -> None:
    rows = Rows(start=1, block=2, stride=4, groups=3)
    values = torch.arange(24).view(2, 12)
    assert rows.count == 6
    assert rows.take(values, 1).tolist() == [[1, 2, 5, 6, 9, 10], [13, 14, 17, 18, 21, 22]]
    assert rows.take(values.T, -2).tolist() == rows.take(values, -1).T.tolist()


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


@pytest.mark.parametrize("targets", ["uery", "self", "layer.1", "re:$.", "bert.encoder", "*"])
def test_what_matches_nothing_lists_the_layers(targets: str) -> None:
    with pytest.raises(UsageError, match=r"named: dense, key, query, value\. Choose .*--target-modules"):
        find(tiny.bert(), targets)


@pytest.mark.parametrize("targets", ["classifier", "re:^classif"])
def test_the_output_head_is_no_target(targets: str) -> None:
    with pytest.raises(UsageError, match=rf"{re.escape(targets)} matches the output head of BertFor.*choose layers"):
        find(tiny.bert(), targets)


def test_nothing_between_commas() -> None:
    with pytest.raises(UsageError, match="--target-modules , names nothing"):
        find(tiny.bert(), ",")


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (Targets("all-linear", layers="0"), 6),
        (Targets("all-linear", layers="0-1"), 12),
        (Targets("attention", layers="1"), 4),
        (Targets("mlp"), 4),
        (Targets("attention,mlp"), 12),
        (Targets("all-linear", exclude="attention"), 5),
        (Targets("all-linear", exclude="re:dense$"), 6),
        (Targets("qv", exclude="value", layers=" 1 "), 1),
        (Targets("kv"), 4),
        (Targets("embeddings"), 3),
        (Targets("qv,embeddings"), 7),
    ],
    ids=str,
)
def test_presets_exclusions_and_blocks(targets: Targets, expected: int) -> None:
    assert len(find_sites(tiny.bert(), targets)) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": "2"}, "--layers 2: the model has no block 2; the last one is 1"),
        ({"layers": "1-0"}, "--layers 1-0 is not a list of block numbers such as 0-5,11"),
        ({"layers": "x"}, "--layers x is not a list"),
        ({"layers": "0,"}, "--layers 0, is not a list"),
        ({"exclude": "re:("}, r"--exclude-modules re:\( is not a regular expression"),
        ({"exclude": "attention,query,value"}, "leave none of the layers to adapt"),
        ({"exclude": "qurey"}, "--exclude-modules qurey matches none of the layers; give names, or re:PATTERN"),
        ({"exclude": "query,qv"}, "--exclude-modules qv matches none of the layers"),
        ({"exclude": "x" * 1001}, "--exclude-modules has more than 1000 characters"),
    ],
    ids=str,
)
def test_what_cannot_be_left_out(options: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        find_sites(tiny.bert(), Targets("qv", **options))


def test_a_layer_as_a_whole_and_in_part_is_adapted_twice() -> None:
    with pytest.raises(UsageError, match=r"qv,c_attn adapts .*c_attn twice, as a whole and in part"):
        find(tiny.gpt2(), "qv,c_attn")


def test_a_bad_regular_expression() -> None:
    with pytest.raises(UsageError, match=r"--target-modules re:\( is not a regular expression: missing \)"):
        find(tiny.bert(), "re:(")


def test_a_regular_expression_cannot_hang() -> None:
    model = nn.Sequential()
    model.add_module("a" * 40 + "_query", nn.Linear(2, 2))
    with pytest.raises(UsageError, match="takes too long to match"):
        find(model, "re:^(a|a|aa)+$")


def test_no_linear_layers() -> None:
    with pytest.raises(
        UsageError,
        match="Sequential has no linear layers to adapt; choose --target-modules conv, --method full or head",
    ):
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
    names = [canonical_path(bare, name) for name, _ in bare.named_parameters()]
    wanted = find(bare, targets)
    model = wrap(tiny.bert())
    assert [canonical_path(model, name) for name, _ in model.named_parameters()] == names
    found = find(model, targets)
    assert [site.path for site in found] == [site.path for site in wanted]
    for ours, theirs in zip(found, wanted, strict=True):
        assert torch.equal(ours.weight(model), theirs.weight(bare))


def test_names_are_those_of_the_bare_encoder() -> None:
    model = tiny.bert()
    assert find(model, "qv")[0].path == "encoder.layer.0.attention.self.query"
    assert find(model, "qv")[0].module == "bert.encoder.layer.0.attention.self.query"
    assert [site.path for site in find(model.bert, "qv")] == [site.path for site in find(model, "qv")]
    assert canonical_path(model, "classifier.weight") == "classifier.weight"


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
