"""LoRA's options, and the kinds of layer that it adapts."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import capaft
from capaft.adapter.module import Adapter
from capaft.methods.stack import parse_stack
from capaft.support.errors import UsageError


def shapes(adapter: Adapter) -> dict[str, tuple[int, ...]]:
    """The down factor's shape by site."""
    return {site.path: tuple(down.shape) for site, (down, _) in adapter.factors_of_sites()}


@pytest.mark.parametrize(
    ("rank", "options", "scale"), [(4, {}, 2.0), (4, {"alpha": 8}, 2.0), (16, {"alpha": 8, "rslora": True}, 2.0)]
)
def test_the_scale(rank: int, options: dict[str, Any], scale: float) -> None:
    layer, x = nn.Linear(32, 32), torch.randn(3, 32)
    adapter = tiny.scramble(capaft.attach(layer, "lora", rank=rank, targets="all-linear", **options))
    ((_, (down, up)),) = adapter.factors_of_sites()
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight + scale * up @ down, layer.bias))


def test_ranks_by_pattern() -> None:
    pattern = ("value=3", r"re:layer\.1=5")
    adapter = capaft.attach(tiny.bert(), "lora", rank=2, rank_pattern=pattern)
    assert shapes(adapter) == {
        "encoder.layer.0.attention.self.query": (2, 32),
        "encoder.layer.0.attention.self.value": (3, 32),
        "encoder.layer.1.attention.self.query": (5, 32),
        "encoder.layer.1.attention.self.value": (3, 32),
    }
    assert parse_stack(**adapter.plan.stack.record()) == adapter.plan.stack


def test_a_pattern_keeps_its_scale_by_its_own_rank() -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    adapter = tiny.scramble(capaft.attach(model, "lora", rank=2, alpha=6, rank_pattern=("0=3",), targets="all-linear"))
    ((_, (down, up)),) = adapter.factors_of_sites()
    x = torch.randn(2, 8)
    torch.testing.assert_close(model(x), F.linear(x, model[0].weight + 2 * up @ down, model[0].bias))


def test_dropout_is_of_the_input_while_the_model_trains_and_no_longer() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(64, 64)), torch.ones(1, 64)
    adapter = tiny.scramble(capaft.attach(model, "lora", rank=2, dropout=0.5, targets="all-linear"))
    ((_, (down, up)),) = adapter.factors_of_sites()
    before = F.linear(x, model[0].weight, model[0].bias)
    torch.manual_seed(1)
    dropped = F.dropout(x, 0.5)
    torch.manual_seed(1)
    torch.testing.assert_close(model(x), before + 2 * dropped @ down.T @ up.T)
    torch.testing.assert_close(model.eval()(x), before + 2 * x @ down.T @ up.T)
    with pytest.raises(UsageError, match=r"dropout must be in \[0, 1\)"):
        capaft.attach(nn.Linear(8, 8), "lora", targets="all-linear", dropout=1.0)


CONVOLUTIONS = [
    nn.Conv1d(6, 8, 3, padding=1),
    nn.Conv1d(6, 8, 3, padding="same", bias=False),
    nn.Conv2d(6, 8, (3, 2), stride=2, padding=(1, 0), dilation=(1, 2)),
    nn.Conv2d(6, 8, 3, groups=2),
    nn.Conv2d(6, 12, 3, groups=6),
    nn.Conv2d(6, 8, 3, padding=1, padding_mode="circular"),
    nn.Conv3d(6, 8, 2),
]


@pytest.mark.parametrize("layer", CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("method", ["lora", "lora+nola+capaboost", "dora", "vera"])
def test_convolutions(layer: Any, method: str) -> None:
    dims = layer.weight.ndim - 2
    model, x = nn.Sequential(layer, nn.Flatten()), torch.randn(2, 6, *[7] * dims)
    before = model(x)
    adapter = capaft.attach(model, method, rank=2, k=5, targets="conv")
    assert torch.equal(model(x), before)
    tiny.scramble(adapter)
    adapted = model(x)
    assert not torch.allclose(adapted, before, atol=1e-3)
    (site,) = adapter.plan.sites
    assert (site.out_features, site.in_features) == (len(layer.weight), layer.weight[0].numel())
    model(x).sum().backward()
    assert layer._parameters["weight"].grad is None
    capaft.merge(model)
    torch.testing.assert_close(model(x), adapted, rtol=1e-4, atol=1e-4)
    layer.requires_grad_(True)


def test_a_kernel_is_the_matrix_of_its_rows() -> None:
    layer, x = nn.Conv2d(3, 4, 2, padding=1), torch.randn(2, 3, 5, 5)
    adapter = tiny.scramble(capaft.attach(layer, "lora", rank=2, targets="conv"))
    ((_, (down, up)),) = adapter.factors_of_sites()
    kernel = layer.weight + (2 * up @ down).view(4, 3, 2, 2)
    torch.testing.assert_close(layer(x), F.conv2d(x, kernel, layer.bias, padding=1))


class Scaled(nn.Embedding):
    """An embedding that is not a plain lookup, like Gemma's."""

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids) * 3


@pytest.mark.parametrize("kind", [nn.Embedding, Scaled])
@pytest.mark.parametrize("method", ["lora", "nola", "dora"])
def test_embeddings(kind: type[nn.Embedding], method: str) -> None:
    model, ids = nn.Sequential(kind(20, 6)), torch.tensor([[1, 5, 5], [0, 19, 2]])
    before = model(ids)
    adapter = capaft.attach(model, method, rank=2, k=4, targets="embeddings")
    assert torch.equal(model(ids), before)
    tiny.scramble(adapter)
    adapted = model(ids)
    assert not torch.allclose(adapted, before, atol=1e-3)
    capaft.merge(model)
    torch.testing.assert_close(model(ids), adapted, rtol=1e-5, atol=1e-5)


def test_an_embedding_starts_as_wide_as_a_single_input() -> None:
    (factor, _) = parse_stack("lora", rank=2).host.factors(
        capaft.attach(nn.Embedding(9, 6), "lora", rank=2, targets="embeddings").plan.sites[0]
    )
    assert (factor.shape, factor.fan_in) == ((2, 9), 1)


def test_packed_experts_have_one_pair_each() -> None:
    from tiny_families import EXPERTS, model_of

    model = model_of("MixtralForCausalLM", "cpu", **EXPERTS)
    before = model(tiny.IDS).logits
    adapter = capaft.attach(model, "lora", rank=2, targets="experts")
    assert [site.path for site in adapter.plan.sites][:4] == [
        f"layers.0.mlp.experts#{name}.{index}" for name in ("down_proj", "gate_up_proj") for index in (0, 1)
    ]
    assert torch.equal(model(tiny.IDS).logits, before)
    tiny.scramble(adapter)
    adapted = model(tiny.IDS).logits
    adapted.sum().backward()
    assert all(parameter.grad is not None for parameter in adapter.parameters())
    names = {name for name, _ in model.named_parameters() if "capaft" not in name}
    assert "model.layers.0.mlp.experts.down_proj" in names
    capaft.merge(model)
    torch.testing.assert_close(model(tiny.IDS).logits, adapted, rtol=1e-4, atol=1e-4)


def test_attention_is_adapted_by_default_and_not_the_experts() -> None:
    from tiny_families import EXPERTS, model_of

    model = model_of("MixtralForCausalLM", **EXPERTS)
    for targets in ("", "all-linear"):
        names = {
            site.path.rsplit(".", 1)[-1] for site in capaft.attach(model, "lora", rank=2, targets=targets).plan.sites
        }
        assert names <= {"q_proj", "k_proj", "v_proj", "o_proj"}
        capaft.detach(model)


def test_experts_that_cannot_be_reached() -> None:
    with pytest.raises(UsageError, match="BertForSequenceClassification has no experts that can be reached"):
        capaft.attach(tiny.bert(), "lora", targets="experts")
