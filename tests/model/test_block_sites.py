"""Places of adapter layers: the projections that attention and feed-forward parts end in, family by family."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from tiny_families import BART, EXPERTS, GROUPED, model_of
from torch import Tensor, nn
from torch.nn import functional as F

import capaft
from capaft.model.block_parts import Projection
from capaft.model.block_sites import find_blocks
from capaft.support.errors import UsageError

T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_heads": 4, "num_layers": 2}
CONFORMER = {
    "num_hidden_layers": 1,
    "conv_dim": [8],
    "conv_kernel": [3],
    "conv_stride": [2],
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}
# A model, its number of blocks, and in one of them: the ends of attention and of the feed-forward part, and its norm.
FAMILIES: list[tuple[str, dict[str, Any], int, str, str, str]] = [
    ("BertModel", {}, 2, "attention.output.dense", "output.dense", "output.LayerNorm"),
    ("RobertaForSequenceClassification", {}, 2, "attention.output.dense", "output.dense", "output.LayerNorm"),
    ("DistilBertModel", {"dim": 32, "n_heads": 4, "n_layers": 2}, 2, "attention.out_lin", "ffn.lin2", ""),
    ("AlbertModel", {"embedding_size": 16}, 1, "attention.dense", "ffn_output", ""),
    ("DebertaV2Model", {}, 2, "attention.output.dense", "output.dense", "output.LayerNorm"),
    ("GPT2LMHeadModel", {}, 2, "attn.c_proj", "mlp.c_proj", ""),
    ("LlamaForCausalLM", GROUPED, 2, "self_attn.o_proj", "mlp.down_proj", ""),
    ("Phi3ForCausalLM", GROUPED, 2, "self_attn.o_proj", "mlp.down_proj", ""),
    ("GPTNeoXForCausalLM", {}, 2, "attention.dense", "mlp.dense_4h_to_h", ""),
    ("OPTForCausalLM", {"ffn_dim": 64, "word_embed_proj_dim": 32}, 2, "self_attn.out_proj", "fc2", ""),
    ("MixtralForCausalLM", EXPERTS, 2, "self_attn.o_proj", "mlp", ""),
    ("ViTForImageClassification", {"image_size": 8, "patch_size": 4}, 2, "attention.o_proj", "mlp.fc2", ""),
    ("BartModel", {"d_model": 32, **BART}, 4, "self_attn.out_proj", "fc2", ""),
    ("T5ForConditionalGeneration", T5, 4, "layer.0.SelfAttention.o", "layer.1.DenseReluDense.wo", ""),
]


@pytest.mark.parametrize(
    ("name", "options", "count", "attention", "feed_forward", "norm"), FAMILIES, ids=[family[0] for family in FAMILIES]
)
def test_blocks(name: str, options: dict[str, Any], count: int, attention: str, feed_forward: str, norm: str) -> None:
    model = model_of(name, **options)
    blocks = find_blocks(model)
    assert len(blocks) == count
    first = blocks[0]
    (part,) = first.feed_forwards
    assert first.ends == (Projection(f"{first.path}.{attention}", 32),)
    assert part.end == Projection(f"{first.path}.{feed_forward}", 32)
    assert part.norm == (f"{first.path}.{norm}" if norm else "")


def test_cross_attention_is_an_attention_too() -> None:
    decoder = find_blocks(model_of("BartModel", d_model=32, **BART))[-1]
    assert [end.path.removeprefix(decoder.path) for end in decoder.ends] == [
        ".self_attn.out_proj",
        ".encoder_attn.out_proj",
    ]


@pytest.mark.parametrize("name", ["MambaModel", "ResNetModel"])
@pytest.mark.parametrize("method", ["houlsby", "pfeiffer", "parallel"])
def test_models_without_blocks_are_refused_in_one_line(name: str, method: str) -> None:
    import transformers

    kind = getattr(transformers, name)
    options = (
        {"hidden_size": 32, "num_hidden_layers": 1, "vocab_size": 8}
        if name == "MambaModel"
        else {"depths": [1], "hidden_sizes": [8], "embedding_size": 8, "out_features": ["stage1"]}
    )
    with torch.device("meta"):
        model = kind(kind.config_class(**options))
    with pytest.raises(UsageError, match="has no transformer blocks to put an adapter layer in; choose a method"):
        capaft.attach(model, method)


@pytest.mark.parametrize("targets", ["attention", "attention.output.dense"])
def test_some_of_the_places(targets: str) -> None:
    adapter = capaft.attach(tiny.bert(), "houlsby", targets=targets, layers="1")
    assert [site.path for site in adapter.plan.sites] == ["encoder.layer.1.attention.output.dense"]


def test_places_that_are_none() -> None:
    with pytest.raises(UsageError, match="query matches none of the places of the method, which are named: dense"):
        capaft.attach(tiny.bert(), "houlsby", targets="query")
    with pytest.raises(UsageError, match="leave none of the places of the method to adapt"):
        capaft.attach(tiny.bert(), "houlsby", exclude="dense")


def by_hand(x: Tensor, factors: tuple[Tensor, ...]) -> Tensor:
    down, up, before, after = factors
    return (x @ down.T + before).relu() @ up.T + after


def test_pfeiffer_in_bert_is_added_before_the_norm_and_takes_what_the_norm_gives() -> None:
    """AdapterHub's `seq_bn`: `norm(x + adapter(norm(x)))` on the sum x of the feed-forward part and the residual."""
    model = tiny.bert()
    adapter = tiny.scramble(capaft.attach(model, "pfeiffer", bottleneck=3))
    norm = model.bert.encoder.layer[1].output.LayerNorm
    seen: list[Tensor] = []
    norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]), prepend=True)
    norm.register_forward_hook(lambda _, args, output: seen.append(output))
    tiny.logits(model)
    x, output = seen
    (_, factors) = list(adapter.factors_of_sites())[-1]
    plain = lambda values: F.layer_norm(values, (32,), norm.weight, norm.bias, norm.eps)  # noqa: E731
    torch.testing.assert_close(output, plain(x + by_hand(plain(x), factors)))


def test_parallel_takes_the_input_of_the_feed_forward_part() -> None:
    model = tiny.bert()
    adapter = tiny.scramble(capaft.attach(model, "parallel", bottleneck=3))
    layer, seen = model.bert.encoder.layer[0], {}
    layer.intermediate.register_forward_pre_hook(lambda _, args: seen.update(x=args[0]))
    layer.output.dense.register_forward_pre_hook(lambda _, args: seen.update(h=args[0]))
    layer.output.dense.register_forward_hook(lambda _, args, output: seen.update(y=output))
    tiny.logits(model)
    (_, factors) = next(adapter.factors_of_sites())
    plain = F.linear(seen["h"], layer.output.dense.weight, layer.output.dense.bias)
    torch.testing.assert_close(seen["y"], plain + 4 * by_hand(seen["x"], factors))


def test_an_adapter_layer_after_packed_experts() -> None:
    model = model_of("MixtralForCausalLM", "cpu", **EXPERTS)
    before = model(tiny.IDS).logits
    adapter = capaft.attach(model, "parallel", bottleneck=3)
    assert torch.equal(model(tiny.IDS).logits, before)
    tiny.scramble(adapter)
    assert not torch.equal(model(tiny.IDS).logits, before)
    assert isinstance(model.get_submodule(adapter.plan.sites[0].module), nn.Module)
