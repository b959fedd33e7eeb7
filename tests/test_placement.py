"""The law of places: what an adapter sees as the end of an attention or feed-forward part is exactly its contribution.

`benchmarks/coverage.py` holds every model type to it; here are the kinds of block that differ.
"""

from __future__ import annotations

import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING
from transformers.models.auto import modeling_auto

import capaft
from capaft.methods.registry import HOSTS
from capaft.model.block_sites import find_blocks
from capaft.model.site import Site
from capaft.model.targets import Targets
from capaft.support.errors import UsageError

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
placement = pytest.importorskip("placement", reason="not a checkout")
import shrunken  # noqa: E402

# By model type: a head, a block, and in it the ends of attentions and of feed-forward parts.
KINDS: dict[str, tuple[str, str, str, str]] = {
    # A projection of the block's width after the feed-forward part, for the input of single layers.
    "gemma3n_text": ("CAUSAL_LM", "layers.0", "self_attn.o_proj", "mlp.down_proj"),
    "gemma4_text": ("CAUSAL_LM", "layers.0", "self_attn.o_proj", "mlp.down_proj"),
    # A state space beside attention, or in its place.
    "falcon_h1": ("CAUSAL_LM", "layers.0", "self_attn.o_proj", "feed_forward.down_proj"),
    "zamba": (
        "SEQUENCE_CLASSIFICATION",
        "layers.2",
        "shared_transf.self_attn.o_proj",
        "shared_transf.feed_forward.down_proj",
    ),
    "zamba2": (
        "CAUSAL_LM",
        "layers.1",
        "shared_transformer.self_attn.o_proj",
        "shared_transformer.feed_forward.down_proj",
    ),
    "jamba": ("CAUSAL_LM", "layers.0", "", "feed_forward.down_proj"),
    "bamba": ("CAUSAL_LM", "layers.0", "", "feed_forward.down_proj"),
    "granitemoehybrid": ("CAUSAL_LM", "layers.0", "", "block_sparse_moe shared_mlp.output_linear"),
    "lfm3": ("CAUSAL_LM", "layers.0", "", "feed_forward.w2"),
    "nemotron_h": ("CAUSAL_LM", "layers.1", "", "mixer"),
    # Mixtures of experts, whose end is the mixture's.
    "lfm2_moe": ("CAUSAL_LM", "layers.1", "self_attn.out_proj", "feed_forward"),
    "longcat_flash": (
        "CAUSAL_LM",
        "layers.0",
        "self_attn.0.o_proj self_attn.1.o_proj",
        "mlp mlps.0.down_proj mlps.1.down_proj",
    ),
    "switch_transformers": ("SEQ_TO_SEQ_CAUSAL_LM", "encoder.block.1", "layer.0.SelfAttention.o", "layer.1.mlp"),
    "nllb-moe": ("SEQ_TO_SEQ_CAUSAL_LM", "decoder.layers.1", "self_attn.out_proj cross_attention.out_proj", "ffn"),
    "llama4_text": ("CAUSAL_LM", "layers.0", "self_attn.o_proj", "feed_forward"),
    "dbrx": ("CAUSAL_LM", "blocks.0", "norm_attn_norm.attn.out_proj", "ffn"),
    # Several streams, or several feed-forward parts.
    "lilt": (
        "SEQUENCE_CLASSIFICATION",
        "encoder.layer.0",
        "attention.output.dense attention.layout_output.dense",
        "output.dense layout_output.dense",
    ),
    "lxmert": (
        "QUESTION_ANSWERING",
        "encoder.x_layers.0",
        "visual_attention.output.dense lang_self_att.output.dense visn_self_att.output.dense",
        "lang_output.dense visn_output.dense",
    ),
    "mobilebert": (
        "SEQUENCE_CLASSIFICATION",
        "encoder.layer.0",
        "attention.output.dense",
        "output.dense ffn.0.output.dense ffn.1.output.dense ffn.2.output.dense",
    ),
    "wav2vec2-bert": (
        "AUDIO_CLASSIFICATION",
        "encoder.layers.0",
        "self_attn.linear_out",
        "ffn1.output_dense ffn2.output_dense",
    ),
    "wav2vec2-conformer": (
        "AUDIO_CLASSIFICATION",
        "encoder.layers.0",
        "self_attn.linear_out",
        "ffn1.output_dense ffn2.output_dense",
    ),
    "granite_speech": ("SEQ_TO_SEQ_CAUSAL_LM", "encoder.layers.0", "attn.to_out", "ff1.down_proj ff2.down_proj"),
    "phi4_multimodal": (
        "CAUSAL_LM",
        "audio_embed.encoder.encoders.0",
        "self_attn.o_proj",
        "feed_forward_in.down_proj feed_forward_out.down_proj",
    ),
    # Layers of the block's width that belong to norms, to adapters of languages, or between stages.
    "voxtral_realtime": ("SEQ_TO_SEQ_CAUSAL_LM", "language_model.layers.0", "self_attn.o_proj", "mlp.down_proj"),
    "axk2": ("CAUSAL_LM", "layers.0", "self_attn.o_proj", "mlp.down_proj"),
    "xmod": ("CAUSAL_LM", "encoder.layer.0", "attention.output.dense", "output.dense"),
    "hiera": ("IMAGE_CLASSIFICATION", "encoder.stages.1.layers.0", "attn.proj", "mlp.fc2"),
    "cvt": ("IMAGE_CLASSIFICATION", "encoder.stages.2.layers.1", "attention.output.dense", "output.dense"),
    "levit": ("IMAGE_CLASSIFICATION", "encoder.stages.0.layers.0", "module.projection.linear", ""),
    # An attention whose output projection is read and not called, one without such a layer, and mixed inputs.
    "wavlm": ("AUDIO_CLASSIFICATION", "encoder.layers.0", "attention", "feed_forward.output_dense"),
    "xlnet": ("CAUSAL_LM", "transformer.layer.0", "", "ff.layer_2"),
    "rwkv": ("CAUSAL_LM", "blocks.0", "attention.output", "feed_forward.value"),
}
# Right in the sweep, but too large to run here.
LARGE = ("gemma3n_text", "zamba", "hiera")
# Methods that refuse a kind, and part of their message; all others pass.
REFUSED = {
    "ia3": {
        "experts are packed": [
            *("jamba", "axk2", "granitemoehybrid", "nemotron_h", "lfm2_moe", "longcat_flash", "llama4_text", "dbrx")
        ],
        "no layer of .* matches key and value": ["bamba", "levit", "xlnet"],
        "read but not called|which is read": ["wavlm", "rwkv"],
    },
    "parallel": {},
    "pfeiffer": {},
    "houlsby": {},
}


@cache
def pair(head: str, model_type: str) -> Any:
    config = CONFIG_MAPPING[model_type]
    kind = getattr(modeling_auto, f"MODEL_FOR_{head}_MAPPING")[config]
    name = next(name for name, value in shrunken.HEADS.items() if value == head)
    return shrunken.Pair(name, model_type, kind[0] if isinstance(kind, tuple) else kind, config)


@cache
def ready(head: str, model_type: str) -> Any:
    return shrunken.runnable(pair(head, model_type))


def model_of(model_type: str, head: str = "CAUSAL_LM") -> Any:
    return shrunken.model_of(pair(head, model_type), ready(head, model_type).rules)


@pytest.mark.parametrize("model_type", KINDS)
def test_ends(model_type: str) -> None:
    head, place, attention, feed_forward = KINDS[model_type]
    (block,) = (block for block in find_blocks(model_of(model_type, head)) if f".{block.path}".endswith("." + place))
    prefix = block.path + "."
    assert {end.path.removeprefix(prefix) for end in block.ends} == set(attention.split())
    assert {part.end.path.removeprefix(prefix) for part in block.feed_forwards} == set(feed_forward.split())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", REFUSED)
@pytest.mark.parametrize("model_type", [kind for kind in KINDS if kind not in LARGE])
def test_by_effect(model_type: str, method: str) -> None:
    head = KINDS[model_type][0]
    runs = ready(head, model_type)
    model = model_of(model_type, head).train(runs.training)
    reasons = [reason for reason, types in REFUSED[method].items() if model_type in types]
    if reasons:
        with pytest.raises(UsageError, match=reasons[0]):
            capaft.attach(model, method)
        assert all(parameter.requires_grad for parameter in model.parameters())
    else:
        placement.check_placement(model, method, lambda: shrunken.logits(model(**runs.inputs)))


def test_the_check_sees_an_end_that_is_not_the_parts() -> None:
    """The module around BERT's output projection adds the residual as well."""
    runs, model = ready("CAUSAL_LM", "bert"), model_of("bert")
    layer = "bert.encoder.layer.1"
    run = lambda: shrunken.logits(model(**runs.inputs))  # noqa: E731
    site = Site("x", f"{layer}.attention.output", 64, 64, "block", "")
    with pytest.raises(placement.PlacementError, match="differs by"):
        placement._check_sites(model, [site], run, placement._acting(model, run), {layer})


def test_the_check_sees_the_input_of_another_part() -> None:
    head = "AUDIO_CLASSIFICATION"
    runs = ready(head, "wav2vec2-bert")
    model = model_of("wav2vec2-bert", head)
    layer = "wav2vec2_bert.encoder.layers.0"
    site = Site("x", f"{layer}.ffn2.output_dense", 64, 64, "block", "", source=f"{layer}.ffn1.intermediate_dense")
    with pytest.raises(placement.PlacementError, match="past the input of"):
        placement._check_input(model, site, lambda: shrunken.logits(model(**runs.inputs)))


@pytest.mark.parametrize(
    ("model_type", "method", "names"),
    [
        ("bamba", "houlsby", "model.layers.*.mamba"),
        ("zamba2", "parallel", "model.layers.*.mamba, model.layers.*.mamba_decoder, model.layers.*.linear"),
        ("gemma4_text", "pfeiffer", "model.layers.*.per_layer_input_gate, model.layers.*.per_layer_projection"),
        ("falcon_h1", "ia3", "model.layers.*.mamba"),
        ("qwen3_next", "prefix", "model.layers.*.linear_attn"),
        ("xlnet", "houlsby", "transformer.layer.*.rel_attn"),
    ],
)
def test_what_has_no_adapter_is_named(model_type: str, method: str, names: str) -> None:
    with pytest.warns(UserWarning, match=re.escape(f"{method} has no place in {names}, and leaves")):
        HOSTS[method]().sites(model_of(model_type), Targets(), None)


def test_what_is_chosen_is_not_warned_of(recwarn: pytest.WarningsRecorder) -> None:
    HOSTS["houlsby"]().sites(model_of("falcon_h1"), Targets("feed_forward.down_proj"), None)
    assert not [warning for warning in recwarn if "has no place" in str(warning.message)]


@pytest.mark.parametrize(
    ("model_type", "method", "reason"),
    [
        ("reformer", "pfeiffer", "whose own backward passes over them; choose houlsby"),
        ("qwen4_exp_text", "pfeiffer", "cannot tell how wide the output of model.layers.0 is"),
        ("jetmoe", "prefix", "cannot add keys and values for the experts of model.layers.0.self_attention"),
        ("xlm", "houlsby", "has no transformer blocks"),
        ("dots3_note_text", "prefix", "cannot determine the widths of keys and values"),
    ],
)
def test_what_cannot_be_placed_is_refused_before_anything_changes(model_type: str, method: str, reason: str) -> None:
    model = model_of(model_type)
    before = {name: (type(module), len(module._forward_hooks)) for name, module in model.named_modules()}
    with pytest.raises(UsageError, match=reason):
        capaft.attach(model, method)
    assert {name: (type(module), len(module._forward_hooks)) for name, module in model.named_modules()} == before
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("model_type", ["llama4_text", "rwkv", "nllb-moe", "switch_transformers", "longcat_flash"])
def test_an_adapter_beside_the_feed_forward_part_learns(model_type: str) -> None:
    head = KINDS[model_type][0]
    runs, model = ready(head, model_type), model_of(model_type, head)
    before = shrunken.logits(model(**runs.inputs))
    adapter = capaft.attach(model, "parallel", bottleneck=2)
    assert torch.equal(shrunken.logits(model(**runs.inputs)), before)
    shrunken.loss(shrunken.logits(model(**runs.inputs))).backward()
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in adapter.parameters())


def test_biases_of_norms_that_move_the_channels() -> None:
    runs, model = ready("IMAGE_CLASSIFICATION", "convnext"), model_of("convnext", "IMAGE_CLASSIFICATION")
    before = shrunken.logits(model(**runs.inputs))
    adapter = capaft.attach(model, "bitfit")
    assert torch.equal(shrunken.logits(model(**runs.inputs)), before)
    with torch.no_grad():
        next(iter(adapter.role_parameters.values())).fill_(0.5)
    after = shrunken.logits(model(**runs.inputs))
    capaft.merge(model)
    torch.testing.assert_close(shrunken.logits(model(**runs.inputs)), after)
