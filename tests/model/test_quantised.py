"""Quantised layers: which modules are some, the weight that they compute with, and whether gradients pass."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import tiny
import torch
from tiny_quantised import (
    LAYERS,
    Attributes,
    CodedTensor,
    Opaque,
    Packed,
    Rounding,
    ScaleOnly,
    Unnamed,
    Wrapped,
    coded,
    loaded_on_codes,
    quantise,
)
from torch import Tensor, nn
from torch.nn import functional as F

import capaft
from capaft.model.quantised import dense_weight, gradient_problem, is_quantised_layer
from capaft.model.site import is_quantised
from capaft.model.targets import Targets
from capaft.model.weight_sites import find_weight_sites
from capaft.model.weights import device_of, dtype_of
from capaft.support.errors import UsageError

Make = Callable[[nn.Linear], nn.Module]
EVERY = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)


def paths(model: nn.Module, targets: str = "all-linear") -> list[str]:
    return [site.module for site in find_weight_sites(model, Targets(targets))]


@EVERY
@pytest.mark.parametrize("targets", ["qv", "all-linear", "mlp", "query"])
def test_quantised_layers_are_the_sites_of_the_plain_model(make: Make, targets: str) -> None:
    plain, packed = find_weight_sites(tiny.bert(), Targets(targets)), quantise(tiny.bert(), make)
    assert find_weight_sites(packed, Targets(targets)) == plain


def test_a_model_of_packed_and_plain_layers_is_adapted_in_both() -> None:
    model = nn.ModuleDict({"text": quantise(tiny.bert().bert, Packed), "vision": tiny.bert().bert})
    sites = paths(model, "qv")
    assert len(sites) == 8
    assert sum(path.startswith("text") for path in sites) == 4


@EVERY
@pytest.mark.parametrize("bias", [True, False])
def test_the_weight_is_what_the_layer_computes_with(make: Make, bias: bool) -> None:
    torch.manual_seed(0)
    layer = make(nn.Linear(16, 24, bias=bias))
    assert is_quantised_layer(layer)
    values = dense_weight(layer)
    assert values is not None
    weight, own_bias = values
    assert weight.shape == (24, 16)
    assert (own_bias is not None) == bias
    x = torch.randn(1, 5, 16)
    torch.testing.assert_close(F.linear(x, weight.float(), own_bias), layer(x).float(), rtol=1e-2, atol=2e-3)
    assert gradient_problem(layer) == ""


def test_a_large_bias_does_not_round_the_weight_away() -> None:
    class Half(Packed):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.to(torch.bfloat16))

    linear = nn.Linear(16, 8)
    nn.init.constant_(linear.bias, 300.0)
    layer = Half(linear)
    values = dense_weight(layer)
    assert values is not None
    torch.testing.assert_close(values[0].float(), layer.values().T, rtol=1e-2, atol=1e-6)
    assert values[1] is not None
    assert torch.equal(values[1], layer.bias)
    assert torch.equal(layer.bias, linear.bias)


def test_what_is_no_product_has_no_weight() -> None:
    class Squared(Packed):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).square()

    class FixedGrid(Packed):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward((x / 0.7).round() * 0.7)

    for kind in (Squared, FixedGrid):
        assert dense_weight(kind(nn.Linear(16, 8))) is None


@pytest.mark.parametrize(("make", "problem"), [(Rounding, "it returns none"), (ScaleOnly, "it returns a wrong one")])
def test_a_layer_that_gradients_do_not_pass_is_refused_by_name(make: Make, problem: str) -> None:
    model = quantise(tiny.bert(), make, ends="key")
    with pytest.raises(
        UsageError, match=rf"no gradient passes through bert.*0.*self\.key \({make.__name__}\).*{problem}"
    ):
        capaft.attach(model, "lora", targets="query")
    assert not capaft.adapters(model)
    assert all(parameter.requires_grad for parameter in model.parameters())
    # A head needs none of them.
    capaft.attach(model, "head", head=["classifier.weight"])


def test_a_backward_that_raises_is_refused_with_its_reason() -> None:
    class Raising(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: object, gradient: Tensor) -> Tensor:
            raise ValueError("the kernels are not installed")

    class Kernels(Packed):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(Raising.apply(x))

    with pytest.raises(UsageError, match=r"query \(Kernels\).*the kernels are not installed; train on"):
        capaft.attach(quantise(tiny.bert(), Kernels), "lora")


def test_what_was_trained_elsewhere_can_be_used_where_no_gradient_passes(tmp_path) -> None:  # type: ignore[no-untyped-def]
    packed, model = loaded_on_codes(tmp_path)
    assert (tiny.logits(packed) - tiny.logits(model)).abs().max() < 0.1


@pytest.mark.filterwarnings("ignore")
def test_torchs_own_dynamic_quantisation_is_refused() -> None:
    model = torch.ao.quantization.quantize_dynamic(tiny.bert(), {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(UsageError, match=r"no gradient passes through bert\.encoder\.layer\.0.* \(Linear\)"):
        capaft.attach(model, "lora")


@pytest.mark.parametrize("inner", [lambda linear: linear, Packed], ids=["plain", "packed"])
def test_a_wrapper_and_its_layer_are_one_site(inner: Make) -> None:
    model = nn.ModuleDict({"query": Wrapped(inner(nn.Linear(8, 6)))})  # type: ignore[arg-type]
    assert paths(model) == ["query.inner"]


def test_the_parts_of_a_layer_are_no_sites() -> None:
    class WithParts(Packed):
        def __init__(self, linear: nn.Linear) -> None:
            super().__init__(linear)
            self.centroids, self.correction = nn.Embedding(4, 4), nn.Linear(2, 2)

    class LowRankLinear(nn.Linear):
        def __init__(self) -> None:
            super().__init__(8, 6)
            self.down = nn.Linear(8, 2)

    model = nn.ModuleDict({"query": WithParts(nn.Linear(8, 6)), "value": LowRankLinear(), "words": nn.Embedding(3, 4)})
    assert paths(model) == ["query", "value"]
    assert paths(model, "embeddings") == ["words"]


def test_codes_of_unknown_widths_are_refused_by_name() -> None:
    model = quantise(tiny.bert(), Opaque, ends="query")
    for targets in ("qv", "all-linear", "query", "attention"):
        with pytest.raises(
            UsageError, match=r"0\.attention\.self\.query and 1 other modules \(Opaque\) computes with codes"
        ):
            capaft.attach(model, "lora", targets=targets)
    assert len(capaft.attach(model, "lora", exclude="query").plan.sites) == 2
    capaft.detach(model)
    assert len(capaft.attach(model, "lora", targets="mlp").plan.sites) == 4


def test_positions_and_masks_are_no_codes() -> None:
    class Tables(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query = nn.Linear(4, 4)
            self.register_buffer("positions", torch.zeros(4, 4, dtype=torch.int64))
            self.register_buffer("mask", torch.ones(4, 4, dtype=torch.bool))
            self.scale = nn.Parameter(torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            return self.query(x)

    assert paths(Tables()) == ["query"]


def test_a_quantised_weight_that_is_read_and_not_called_is_refused() -> None:
    model = tiny.reader()
    coded(model.value)
    with pytest.raises(UsageError, match="the weight of value is quantised, and the model reads it without calling"):
        capaft.attach(model, "lora", targets="value")


def test_dora_names_a_packed_layer() -> None:
    for make in (Packed, coded, Unnamed):
        with pytest.raises(UsageError, match=r"dora needs the norms of .*query, which is quantised; choose lora"):
            capaft.attach(quantise(tiny.bert(), make), "dora")


@pytest.mark.parametrize("method", ["full", "lora"])
def test_codes_are_not_trained_directly(method: str) -> None:
    model = quantise(tiny.bert(), Unnamed)
    with pytest.raises(UsageError, match=r"is quantised and cannot be trained directly; "):
        capaft.attach(model, method, targets="qv", modules_to_save="key")


@EVERY
@pytest.mark.parametrize(
    "method", ["lora+nola+capaboost", "vera", "ia3", "bitfit", "houlsby", "pfeiffer", "parallel", "prefix"]
)
def test_every_method_trains_beside_quantised_layers(make: Make, method: str) -> None:
    model = quantise(tiny.bert(), make)
    before = tiny.logits(model)
    adapter = capaft.attach(model, method)
    assert [site.path for site in adapter.plan.sites] == [
        site.path for site in capaft.attach(tiny.bert(), method).plan.sites
    ]
    torch.testing.assert_close(tiny.logits(model), before, rtol=0, atol=1e-6)
    start = {role: parameter.detach().clone() for role, parameter in adapter.role_parameters.items()}
    tiny.train(model)
    assert all(not torch.equal(parameter, start[role]) for role, parameter in adapter.role_parameters.items())
    capaft.detach(model)
    assert torch.equal(tiny.logits(model), before)


def test_a_model_without_parameters_has_a_device_and_a_dtype() -> None:
    model = nn.Sequential(Attributes(nn.Linear(8, 8)))
    assert not list(model.parameters()) + list(model.buffers())
    assert device_of(model) == torch.device("cpu")
    assert dtype_of(model) == torch.float32
    adapter = tiny.scramble(capaft.attach(model, "lora", targets="all-linear", rank=2))
    x = torch.randn(2, 8)
    ((_, (down, up)),) = adapter.factors_of_sites()
    torch.testing.assert_close(model(x), model[0].forward(x) + 2 * x @ down.T @ up.T)


def test_tensors_of_torch_itself_are_values() -> None:
    class Marked(Tensor):
        pass

    assert not is_quantised(torch.zeros(2).as_subclass(Marked))
    assert not is_quantised(nn.Parameter(torch.zeros(2)))
    assert is_quantised(CodedTensor(torch.zeros(2, 2, dtype=torch.int8), torch.ones(2)))
    assert is_quantised(torch.zeros(2), size=4)
    assert is_quantised(None)
