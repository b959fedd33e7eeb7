"""Owners of weights, and a model's device."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import tiny
import torch
from torch import Tensor, nn

from capaft.model.weights import device_of, weight_owners


def test_a_tied_weight_has_several_owners() -> None:
    model = tiny.gpt2()
    owners = weight_owners(model)
    assert owners[id(model.lm_head.weight)] == [("transformer.wte", "weight"), ("lm_head", "weight")]
    assert owners[id(model.transformer.ln_f.bias)] == [("transformer.ln_f", "bias")]
    assert owners[id(Tensor())] == []


def test_a_weight_of_the_model_itself() -> None:
    model = nn.Linear(2, 2, bias=False)
    assert dict(weight_owners(model)) == {id(model.weight): [("", "weight")]}


def test_two_parameters_in_one_memory_are_one_weight_by_data_ptr_only() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight = nn.Parameter(model[0].weight.detach())
    both = [("0", "weight"), ("1", "weight")]
    assert list(weight_owners(model).values()) == [both[:1], both[1:]]
    assert list(weight_owners(model, key=lambda weight: weight.data_ptr()).values()) == [both]


@pytest.mark.parametrize("first", ["meta", "cpu"])
def test_the_device_is_that_of_the_first_weight_that_is_somewhere(first: str) -> None:
    model = nn.Sequential(nn.Linear(2, 2, device=first), nn.Linear(2, 2))
    assert device_of(model) == torch.device("cpu")


@pytest.mark.parametrize(
    ("execution_device", "expected"), [(None, "meta"), ("cpu", "cpu"), (torch.device("cpu"), "cpu")]
)
def test_the_device_of_a_model_that_is_all_on_meta(execution_device: object, expected: str) -> None:
    model = nn.Linear(2, 2, device="meta")
    assert device_of(model) == torch.device("meta")
    model._hf_hook = SimpleNamespace(execution_device=execution_device)
    assert device_of(model) == torch.device(expected)
