"""The rate and decay of each trainable parameter, and every optimizer against its reference."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from tiny import bert, train
from torch import nn
from transformers.optimization import Adafactor

import capaft
from capaft.adapter.module import Adapter
from capaft.config.train_config import TrainConfig
from capaft.support.errors import UsageError
from capaft.training.optimizer import build_optimizer, parameter_groups
from capaft.training.setup.recipe import Rates

HEAD = ("classifier.weight", "classifier.bias")
NAMES = ("adamw", "adafactor", "sgd")
ABSOLUTE = {"scale_parameter": False, "relative_step": False, "warmup_init": False}


def grouped(
    method: str, head: dict[str, Any] | None = None, **settings: Any
) -> tuple[Adapter, nn.Module, list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """An adapter on a tiny model, the groups, and the group of each trained parameter by its name."""
    model = bert()
    sizes = {"k": 8, "rank": 2} if "nola" in method else {} if method in ("full", "head", "bitfit") else {"rank": 2}
    adapter = capaft.attach(model, method, seed=1, head=list(HEAD), **sizes, **(head or {}))
    names = {"head"} | {f"head:{name}" for name in HEAD}
    groups = parameter_groups(adapter, model, names, Rates(1e-2, 1e-3, 1, None), TrainConfig(**settings))
    by_id = {id(parameter): group for group in groups for parameter in group["params"]}
    return adapter, model, groups, {name: by_id[id(p)] for name, p in adapter.trained(model).items()}


@pytest.mark.parametrize("method", ["nola", "lora", "houlsby", "bitfit", "capaboost", "head", "full"])
def test_every_trained_number_is_in_one_group_and_no_other(method: str) -> None:
    adapter, model, groups, _ = grouped(method, weight_decay=0.1, lora_plus_ratio=4.0)
    ids = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(ids) == sorted(id(parameter) for parameter in adapter.trained(model).values())
    assert {id(p) for p in model.parameters() if p.requires_grad} == set(ids)


def test_the_head_learns_at_its_own_rate_and_the_adapters_leads() -> None:
    _, _, groups, by_name = grouped("lora")
    assert groups[0]["lr"] == 1e-2
    assert {name: group["lr"] for name, group in by_name.items()} == {
        "down": 1e-2,
        "up": 1e-2,
        "head:classifier.weight": 1e-3,
        "head:classifier.bias": 1e-3,
    }
    assert all(group["peak"] == group["lr"] for group in groups)


def test_up_factors_learn_faster_if_asked_to() -> None:
    _, _, _, by_name = grouped("lora", lora_plus_ratio=16.0)
    assert by_name["up"]["lr"] == pytest.approx(16e-2)
    assert by_name["down"]["lr"] == 1e-2
    assert by_name["head:classifier.weight"]["lr"] == 1e-3


def test_decay_is_for_matrices() -> None:
    _, _, _, by_name = grouped("lora", weight_decay=0.1)
    assert {name: group["weight_decay"] for name, group in by_name.items()} == {
        "down": 0.1,
        "up": 0.1,
        "head:classifier.weight": 0.1,
        "head:classifier.bias": 0.0,
    }


@pytest.mark.parametrize("method", ["nola", "bitfit"])
def test_coefficients_and_biases_are_not_decayed(method: str) -> None:
    adapter, _, _, by_name = grouped(method, weight_decay=0.1)
    assert adapter.role_parameters
    assert {by_name[name]["weight_decay"] for name in adapter.role_parameters} == {0.0}


def test_coefficients_of_a_head_are_the_heads_and_not_decayed() -> None:
    _, _, _, by_name = grouped("lora", {"head_mode": "nola", "head_k": 4}, weight_decay=0.1)
    assert by_name["head"]["lr"] == 1e-3
    assert by_name["head"]["weight_decay"] == 0.0


def test_biases_of_adapter_layers_are_not_decayed() -> None:
    _, _, _, by_name = grouped("houlsby", weight_decay=0.1)
    decays = {name: group["weight_decay"] for name, group in by_name.items() if not name.startswith("head")}
    assert {name for name, decay in decays.items() if decay} == {"down", "up"}
    assert len(decays) > 2


def test_all_weights_are_decayed_as_their_shapes_say() -> None:
    adapter, model, _, by_name = grouped("full", weight_decay=0.1)
    for name, parameter in adapter.trained(model).items():
        assert by_name[name]["weight_decay"] == (0.1 if parameter.ndim > 1 else 0.0), name


@pytest.mark.parametrize("name", NAMES)
def test_steps_are_those_of_the_name(name: str) -> None:
    plain = {
        "adamw": lambda params: torch.optim.AdamW(params, lr=1e-2, weight_decay=0.1),
        # Another implementation of it, at absolute rates.
        "adafactor": lambda params: Adafactor(params, lr=1e-2, weight_decay=0.1, **ABSOLUTE),
        "sgd": lambda params: torch.optim.SGD(params, lr=1e-2, momentum=0.9, weight_decay=0.1),
    }[name]
    start = 0.3 * torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    group = {"params": [ours], "lr": 1e-2, "peak": 1e-2, "weight_decay": 0.1}
    for optimizer, parameter in ((build_optimizer(name, [group]), ours), (plain([theirs]), theirs)):
        for step in range(3):
            parameter.grad = (start * (step + 1)).sin()
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
    assert (ours - start).abs().max() > 1e-2


@pytest.mark.parametrize("name", NAMES)
def test_coefficients_leave_the_nothing_they_start_at(name: str) -> None:
    coefficients = nn.Parameter(torch.zeros(2, 8))
    optimizer = build_optimizer(name, [{"params": [coefficients], "lr": 1e-2, "weight_decay": 0.0}])
    coefficients.grad = torch.ones(2, 8)
    optimizer.step()
    assert coefficients.detach().abs().min() > 5e-3


@pytest.mark.parametrize("name", NAMES)
def test_every_optimiser_trains_what_is_trained_and_nothing_else(name: str) -> None:
    adapter, model, groups, _ = grouped("nola")
    before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    train(model)
    build_optimizer(name, groups).step()
    moved = {key for key, parameter in model.named_parameters() if not torch.equal(parameter, before[key])}
    assert len(moved) == len(adapter.trained(model))


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="it is installed")
def test_the_8_bit_one_says_what_it_needs() -> None:
    with pytest.raises(UsageError, match="--optimizer adamw-8bit needs the package bitsandbytes; pip install") as error:
        build_optimizer("adamw-8bit", [])
    assert "\n" not in str(error.value)
