"""Merging into quantised models, whose layers become plain ones."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import tiny
import torch
from tiny_quantised import LAYERS, CodedTensor, Packed, coded, loaded_on_codes, quantise
from torch import Tensor, nn
from torch.nn import functional as F

import capaft
from capaft.support.errors import UsageError

Make = Callable[[nn.Linear], nn.Module]
EVERY = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
TOLERANCE = {"rtol": 0, "atol": 2e-4}


@EVERY
@pytest.mark.parametrize("method", ["lora+nola+capaboost", "vera", "ia3"])
def test_merged_equals_unmerged(make: Make, method: str) -> None:
    model = quantise(tiny.bert(), make)
    adapter = tiny.scramble(capaft.attach(model, method))
    for parameter in adapter.role_parameters.values():
        parameter.data *= 1 if method.startswith("lora") else 10
    expected = tiny.logits(model)
    effect = (expected - tiny.logits(quantise(tiny.bert(), make))).abs().max()
    with pytest.raises(
        UsageError, match=r"is quantised; load the base model unquantised .* or pass quantised=\"dequantise\"$"
    ):
        capaft.merge(model)
    assert torch.equal(tiny.logits(model), expected)
    capaft.merge(model, quantised="dequantise")
    assert (tiny.logits(model) - expected).abs().max() < 0.05 * effect
    linear = [module for path, module in model.named_modules() if path.endswith(("query", "key", "dense"))]
    assert {type(module) for module in linear} == {nn.Linear}
    assert model.state_dict().keys() == tiny.bert().state_dict().keys()


def test_the_sum_is_rounded_once() -> None:
    merged = []
    for dtype in (torch.bfloat16, torch.float32):
        model = quantise(tiny.bert(), coded)
        model.bert.embeddings.to(dtype)
        tiny.scramble(capaft.attach(model, "lora", targets="query"))
        capaft.merge(model, quantised="dequantise")
        merged.append(model.state_dict())
    for name, weight in merged[0].items():
        if "attention.self" in name:
            assert weight.dtype == torch.bfloat16
            assert torch.equal(weight, merged[1][name].bfloat16()), name


def test_a_bias_needs_no_values_of_the_weight() -> None:
    model = quantise(tiny.bert(), Packed)
    tiny.scramble(capaft.attach(model, "bitfit"))
    expected = tiny.logits(model)
    capaft.merge(model)
    torch.testing.assert_close(tiny.logits(model), expected, rtol=0, atol=1e-6)
    assert isinstance(model.bert.encoder.layer[0].attention.self.query, Packed)


def test_another_adapter_and_hooks_stay() -> None:
    model = quantise(tiny.bert(), coded)
    tiny.scramble(capaft.attach(model, "lora", targets="query"))
    tiny.scramble(capaft.attach(model, "lora", name="second", targets="query,key"), seed=1)
    capaft.switch(model, ["default", "second"])
    calls: list[int] = []
    handle = model.bert.encoder.layer[0].attention.self.key.register_forward_hook(lambda *_: calls.append(1))
    expected = tiny.logits(model)
    capaft.merge(model, "default", quantised="dequantise")
    torch.testing.assert_close(tiny.logits(model), expected, **TOLERANCE)
    handle.remove()
    tiny.logits(model)
    assert len(calls) == 2
    capaft.merge(model, "second")
    torch.testing.assert_close(tiny.logits(model), expected, **TOLERANCE)
    assert not [name for name, _ in model.named_modules() if "capaft" in name]


def test_a_layer_whose_weight_cannot_be_told_is_refused_by_name_and_nothing_is_changed() -> None:
    class Squared(Packed):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).square()

    model = quantise(quantise(tiny.bert(), Squared, ends="key"), Packed)
    tiny.scramble(capaft.attach(model, "lora"))
    expected = tiny.logits(model)
    with pytest.raises(
        UsageError, match=r"0\.attention\.self\.key \(Squared\) is quantised, and the weight .* told; load"
    ):
        capaft.merge(model, quantised="dequantise")
    assert torch.equal(tiny.logits(model), expected)
    assert list(capaft.adapters(model)) == ["default"]
    assert isinstance(model.bert.encoder.layer[0].attention.self.query, Packed)


def test_a_layer_that_gradients_do_not_pass_can_be_merged(tmp_path) -> None:  # type: ignore[no-untyped-def]
    packed, _ = loaded_on_codes(tmp_path)
    expected = tiny.logits(packed)
    capaft.merge(packed, quantised="dequantise")
    torch.testing.assert_close(tiny.logits(packed), expected, rtol=0, atol=2e-2)


def test_embeddings_and_kernels_become_plain_too() -> None:
    class Kernel(nn.Conv1d):
        def forward(self, x: Tensor) -> Tensor:
            return F.conv1d(x, self.weight.dequantize().unflatten(1, (-1, 3)), self.bias, self.stride, self.padding)

    class Words(nn.Embedding):
        def forward(self, ids: Tensor) -> Tensor:
            return (self.weight[ids].float()) * 0.01

    class Whole(CodedTensor):
        def dequantize(self) -> Tensor:
            return (self.codes * self.scales[:, None]).view(16, 16, 3)

    model = tiny.kernels()
    model.words.weight = nn.Parameter((model.words.weight.data * 100).to(torch.int8), requires_grad=False)
    model.words.__class__ = Words
    coded(model.out)
    tiny.scramble(capaft.attach(model, "lora", targets="out"))
    expected = tiny.logits(model)
    capaft.merge(model, quantised="dequantise")
    assert type(model.words) is nn.Embedding
    torch.testing.assert_close(tiny.logits(model), expected, **TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_weights_take_the_dtype_of_the_others_and_the_model_is_no_longer_marked(dtype: torch.dtype) -> None:
    model = quantise(tiny.bert(), Packed).to(dtype)
    model.config = SimpleNamespace(**vars(model.config), quantization_config={"bits": 4})
    model.is_quantized, model.hf_quantizer, model.quantization_method = True, object(), "gptq"
    tiny.scramble(capaft.attach(model, "lora"))
    capaft.merge(model, quantised="dequantise")
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert not hasattr(model.config, "quantization_config")
    assert not {"is_quantized", "hf_quantizer", "quantization_method"} & set(vars(model))


def test_a_plain_model_is_merged_as_ever() -> None:
    model, other = tiny.bert(), tiny.bert()
    for one in (model, other):
        tiny.scramble(capaft.attach(one, "lora"))
    assert capaft.merge(model, quantised="dequantise") == capaft.merge(other) == 4
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_an_offloaded_layer_is_refused() -> None:
    model = quantise(tiny.bert(), Packed)
    tiny.scramble(capaft.attach(model, "lora"))
    model.bert.encoder.layer[1].attention.self.key.to("meta")
    with pytest.raises(UsageError, match=r"1\.attention\.self\.key is offloaded; load"):
        capaft.merge(model, quantised="dequantise")


def test_layers_are_in_the_mode_that_was_asked_for() -> None:
    class Observed(Packed):
        """Codes with a running range, which only evaluation mode keeps still."""

        def __init__(self, linear: nn.Linear) -> None:
            super().__init__(linear)
            self.register_buffer("largest", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                self.largest = torch.maximum(self.largest, x.detach().abs().max())
            return super().forward(x)

    model = quantise(tiny.bert(), Observed).train()
    capaft.attach(model, "lora")
    capaft.attach(model, "lora", name="second")
    assert not model.bert.encoder.layer[0].attention.self.key.training
    twin = copy.deepcopy(model)
    capaft.detach(twin, "second")
    capaft.detach(twin)
    assert all(module.training for module in twin.modules())
    capaft.detach(model, "second")
    capaft.merge(model, quantised="dequantise")
    assert all(module.training for module in model.modules())
