"""Sites in many families, and the messages if there are none."""

from __future__ import annotations

import re
from typing import Any

import pytest
import tiny
from tiny_families import BART, GROUPED, model_of
from torch import nn
from transformers.pytorch_utils import Conv1D

from capaft.model.site import Site
from capaft.model.targets import Targets
from capaft.model.weight_sites import find_weight_sites
from capaft.support.errors import UsageError


def find(model: nn.Module, targets: str, rename: dict[str, str] | None = None) -> tuple[Site, ...]:
    return find_weight_sites(model, Targets(targets), rename)


def ends(sites: tuple[Site, ...]) -> set[str]:
    """Last names of the sites, with the slices of fused layers."""
    return {site.path.rsplit(".", 1)[-1] for site in sites}


# Families, with the names of their query and value and the number of attention blocks that have them.

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


@pytest.mark.parametrize(("name", "options", "expected", "blocks"), FAMILIES, ids=[family[0] for family in FAMILIES])
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


@pytest.mark.parametrize(
    ("name", "options"), [family[:2] for family in FAMILIES], ids=[family[0] for family in FAMILIES]
)
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


# Messages.


@pytest.mark.parametrize("targets", ["uery", "self", "layer.1", "re:$.", "bert.encoder", "*"])
def test_what_matches_nothing_lists_the_layers(targets: str) -> None:
    with pytest.raises(UsageError, match=r"named: dense, key, query, value\. Choose .*--target-modules"):
        find(tiny.bert(), targets)


@pytest.mark.parametrize("targets", ["classifier", "re:^classif"])
def test_the_output_head_is_no_target(targets: str) -> None:
    with pytest.raises(UsageError, match=rf"{re.escape(targets)} matches the output head of BertFor.*choose layers"):
        find(tiny.bert(), targets)


def test_no_linear_layers() -> None:
    with pytest.raises(
        UsageError,
        match="Sequential has no linear layers to adapt; choose --target-modules conv, --method full or head",
    ):
        find(nn.Sequential(nn.Conv1d(2, 2, 1)), "qv")


def test_a_layer_as_a_whole_and_in_part_is_adapted_twice() -> None:
    with pytest.raises(UsageError, match=r"qv,c_attn adapts .*c_attn twice, as a whole and in part"):
        find(tiny.gpt2(), "qv,c_attn")


def test_renaming_two_modules_to_one_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"--rename turns both .*self.query and .*self.value into encoder"):
        find(tiny.bert(), "qv", {"query": "value"})
