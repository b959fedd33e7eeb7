"""Merging, and refusals to merge; test_contract.py tests that merged equals unmerged in every cell."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import naive
import pytest
import tiny
import torch
from torch import nn

import capaft
from capaft.adapter.activation import get_adapter
from capaft.support.errors import UsageError

STACKS = ("lora", "nola", "capaboost", "lora+nola+capaboost")


def adapted(model: Any, method: str = "lora+nola+capaboost", **options: Any) -> Any:
    tiny.scramble(capaft.attach(model, method, **{"rank": 4, "k": 16} | options))
    return model


@pytest.mark.parametrize("method", STACKS)
@pytest.mark.parametrize(("make", "targets"), [(tiny.bert, "all-linear"), (tiny.gpt2, "qv"), (tiny.gpt2, "c_attn")])
def test_merged_equals_unmerged(make: Callable[[], Any], targets: str, method: str) -> None:
    model = adapted(make(), method, targets=targets)
    unmerged = tiny.logits(model)
    sites = len(get_adapter(model).plan.sites)
    assert capaft.merge(model) == sites
    merged = tiny.logits(model)
    assert (merged - unmerged).abs().max() < 1e-5
    assert (tiny.logits(make()) - unmerged).abs().max() > 1e-2
    assert not any("capaft" in name for name, _ in model.named_modules())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("make", "targets"), [(tiny.bert, "qv"), (tiny.gpt2, "qv"), (tiny.gpt2, "c_fc")])
def test_the_sum_is_rounded_once(make: Callable[[], Any], targets: str, dtype: torch.dtype) -> None:
    model = adapted(make().to(dtype), targets=targets)
    adapter = get_adapter(model)
    before = {name: parameter.detach().clone() for name, parameter in make().to(dtype).named_parameters()}
    capaft.merge(model)
    touched = {site.module + ".weight" for site in adapter.plan.sites}
    for name, parameter in model.named_parameters():
        assert parameter.dtype == dtype
        assert torch.equal(parameter, before[name]) == (name not in touched)
    base = make().to(dtype)
    for site in adapter.plan.sites:
        exact = site.weight(base).detach().double() + naive.update(adapter, site)
        # Half a step of rounding to the dtype, and the error of sums in float32.
        step = torch.finfo(dtype).eps / 2 * exact.abs() + 4 * torch.finfo(torch.float32).eps * exact.abs().max()
        assert ((site.weight(model).double() - exact).abs() <= step).all()


def test_rows_outside_the_slices_stay() -> None:
    model = adapted(tiny.gpt2())
    key = slice(32, 64)
    capaft.merge(model)
    for merged, base in zip(model.transformer.h, tiny.gpt2().transformer.h, strict=True):
        assert torch.equal(merged.attn.c_attn.weight[:, key], base.attn.c_attn.weight[:, key])
        assert not torch.equal(merged.attn.c_attn.weight, base.attn.c_attn.weight)


def test_one_of_two_adapters() -> None:
    model = adapted(tiny.bert(), name="first")
    adapted(model, "lora", name="second", targets="all-linear")
    capaft.switch(model, ["first", "second"])
    expected = tiny.logits(model)
    capaft.merge(model, "first")
    assert list(capaft.adapters(model)) == ["second"]
    torch.testing.assert_close(tiny.logits(model), expected, rtol=0, atol=1e-5)
    capaft.merge(model, "second")
    torch.testing.assert_close(tiny.logits(model), expected, rtol=0, atol=1e-5)


def assert_refused(model: nn.Module, message: str) -> None:
    """Merging raises an error and changes nothing."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UsageError, match=message):
        capaft.merge(model)
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_tied_targets_are_one_site() -> None:
    model = tiny.bert()
    layers = model.bert.encoder.layer
    layers[1].attention.self.value.weight = layers[0].attention.self.query.weight
    adapter = tiny.scramble(capaft.attach(model, "lora"))
    assert [site.path for site in adapter.plan.sites] == [
        f"encoder.layer.{name}"
        for name in ("0.attention.self.query", "0.attention.self.value", "1.attention.self.query")
    ]
    expected = tiny.logits(model)
    assert capaft.merge(model) == 3
    assert layers[1].attention.self.value.weight is layers[0].attention.self.query.weight
    torch.testing.assert_close(tiny.logits(model), expected, rtol=0, atol=1e-5)


def test_a_weight_tied_to_what_is_no_target_is_refused_by_name_and_left_out_of_a_preset() -> None:
    model = tiny.bert()
    layers = model.bert.encoder.layer
    layers[1].attention.self.key.weight = layers[0].attention.self.query.weight
    with pytest.raises(UsageError, match=r"self\.query shares its weight with .*1\.attention\.self\.key"):
        capaft.attach(model, "lora", targets="query")
    assert len(capaft.attach(model, "lora").plan.sites) == 3


def test_a_weight_tied_later_is_refused() -> None:
    model = adapted(tiny.bert())
    layers = model.bert.encoder.layer
    layers[1].attention.self.key.weight = layers[0].attention.self.query.weight
    assert_refused(model, r"layer\.0\.attention\.self\.query\.weight and .*self\.key\.weight are one tied weight")


def test_a_weight_tied_outside_the_adapter_is_no_matter() -> None:
    model = tiny.gpt2()
    assert model.lm_head.weight is model.transformer.wte.weight
    assert capaft.merge(adapted(model)) == 4


def test_a_quantised_weight_is_refused() -> None:
    class Int8Linear(nn.Linear):
        def __init__(self) -> None:
            super().__init__(8, 8)
            self.weight = nn.Parameter(self.weight.mul(100).to(torch.int8), requires_grad=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ (self.weight.float() / 100).T

    model = nn.ModuleDict({"query": nn.Linear(8, 8), "value": Int8Linear()})
    assert_refused(adapted(model, "lora"), "value is quantised; load the base model unquantised")


def test_an_unknown_name() -> None:
    with pytest.raises(UsageError, match="no adapter named default"):
        capaft.merge(tiny.bert())


@pytest.mark.parametrize(
    ("first", "second", "merged", "works"),
    [
        ("lora", "vera", "first", True),
        ("lora", "vera", "second", True),
        ("lora", "ia3", "first", True),
        ("lora", "ia3", "second", False),
        ("ia3", "lora", "first", True),
        ("ia3", "lora", "second", False),
        ("lora", "dora", "first", False),
        ("dora", "lora", "first", True),
        ("bitfit", "ia3", "first", True),
    ],
)
def test_an_adapter_is_merged_only_where_that_changes_nothing(
    first: str, second: str, merged: str, works: bool
) -> None:
    model = tiny.bert()
    for name, method in (("first", first), ("second", second)):
        targets = "" if method == "bitfit" else "key,value"
        tiny.scramble(capaft.attach(model, method, name=name, rank=3, targets=targets), seed=len(name))
    capaft.switch(model, ["first", "second"])
    expected = tiny.logits(model)
    if works:
        capaft.merge(model, merged)
    else:
        with pytest.raises(UsageError, match=r"the two do not add up; merge first first, or detach"):
            capaft.merge(model, merged)
    torch.testing.assert_close(tiny.logits(model), expected, rtol=0, atol=1e-5)


HEAD = ["classifier.weight", "classifier.bias"]


def test_a_trained_head_takes_the_dtype_of_the_model() -> None:
    model = tiny.bert().bfloat16()
    model.config = copy.deepcopy(model.config)
    capaft.attach(model, "lora", labels=["a", "b", "c", "d"], head=HEAD)
    with torch.no_grad():
        model.classifier.weight.data = model.classifier.weight.float() + 1e-3
    expected = model.classifier.weight.bfloat16()
    capaft.merge(model)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert torch.equal(model.classifier.weight, expected)
    assert tiny.logits(model).shape[-1] == 4


def test_several_adapters_are_rounded_once() -> None:
    model = tiny.bert().bfloat16()
    for index, name in enumerate(("first", "second")):
        tiny.scramble(capaft.attach(model, "lora", name=name, rank=4, targets="query"), seed=index)
    capaft.switch(model, ["first", "second"])
    base, held = tiny.bert().bfloat16(), [get_adapter(model, name) for name in ("first", "second")]
    exact = {
        site.module: site.weight(base).detach().double() + sum(naive.update(adapter, site) for adapter in held)
        for site in held[0].plan.sites
    }
    capaft.merge(model)
    for path, weight in exact.items():
        merged = model.get_submodule(path).weight
        assert merged.dtype == torch.bfloat16
        step = torch.finfo(torch.bfloat16).eps / 2 * weight.abs() + 1e-6
        assert ((merged.double() - weight).abs() <= step).all()


@pytest.mark.parametrize(("size", "warns"), [(1e-3, True), (1.0, False)])
def test_an_update_that_rounding_swallows_is_said(size: float, warns: bool) -> None:
    model = tiny.bert().bfloat16()
    adapter = tiny.scramble(capaft.attach(model, "lora", rank=4, targets="query"))
    for parameter in adapter.role_parameters.values():
        parameter.data *= size
    with warnings.catch_warnings(record=True) as lines:
        warnings.simplefilter("always")
        capaft.merge(model)
    assert [("rounded to bfloat16" in str(line.message), line.filename == __file__) for line in lines] == [
        (True, True)
    ] * warns
