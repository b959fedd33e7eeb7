"""Optimizers by name, and the rate and decay of each trainable parameter."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from capaft.adapter.module import Adapter
from capaft.config.parts.optimization import OptimizationSettings
from capaft.methods.head import HEAD_ROLE
from capaft.support.errors import UsageError
from capaft.training.setup.recipe import Rates

MOMENTUM = 0.9


def parameter_groups(
    adapter: Adapter, model: nn.Module, head: set[str], rates: Rates, settings: OptimizationSettings
) -> list[dict[str, Any]]:
    """Parameter groups: the head learns at its own rate, up factors faster if asked to; decay is for matrices only.

    LoRA+ (Hayou et al. 2024, arXiv 2402.12354) has the up factors learn faster than the down factors. Decay pulls
    coefficients towards the initial factor, which is not the prior that it is for weights.

    Args:
        adapter: the attached adapter.
        model: its model.
        head: names of the trainable parameters, as in the adapter file, that belong to the head.
        rates: peak rates of adapter and head.
        settings: weight decay and the ratio of LoRA+.
    """
    plan = adapter.plan
    matrices = {role for role, groups in plan.groups().items() if any(len(f.shape) > 1 for f, _ in groups)}
    by_rate: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in adapter.trained(model).items():
        is_coefficient = name in adapter.role_parameters and (plan.stack.k is not None or name == HEAD_ROLE)
        is_vector = name not in matrices if name in adapter.role_parameters else parameter.ndim < 2
        decay = 0.0 if is_coefficient or is_vector else settings.weight_decay
        faster = settings.lora_plus_ratio if name == "up" else 1.0
        rate = rates.head_lr if name in head else rates.lr * faster
        by_rate.setdefault((rate, decay), []).append(parameter)
    # The adapter's own rate leads, since it is the one shown.
    ordered = sorted(by_rate.items(), key=lambda group: group[0][0] != rates.lr)
    return [{"params": params, "lr": rate, "peak": rate, "weight_decay": decay} for (rate, decay), params in ordered]


def build_optimizer(name: str, params: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """The optimizer of that name.

    Raises:
        UsageError: it needs a package that is not installed.
    """
    check_optimizer(name)
    return _MAKERS[name](params)


def check_optimizer(name: str) -> None:
    """Make sure that the optimizer of that name is available.

    Raises:
        UsageError: it needs a package that is not installed.
    """
    if name == "adamw-8bit" and find_spec("bitsandbytes") is None:
        raise UsageError("--optimizer adamw-8bit needs the package bitsandbytes; pip install bitsandbytes")


def _eight_bit(params: list[dict[str, Any]]) -> torch.optim.Optimizer:
    import bitsandbytes

    return bitsandbytes.optim.AdamW8bit(params, weight_decay=0.0)


_MAKERS: dict[str, Callable[[list[dict[str, Any]]], torch.optim.Optimizer]] = {
    "adamw": lambda params: torch.optim.AdamW(params, weight_decay=0.0),
    "adamw-8bit": _eight_bit,
    # Shazeer & Stern 2018, arXiv 1804.04235; its steps are relative to a parameter's size, but for this to sizes above
    # 1 only: coefficients start at 0 and would hardly leave it.
    "adafactor": lambda params: torch.optim.Adafactor(params, weight_decay=0.0, eps=(None, 1.0)),
    "sgd": lambda params: torch.optim.SGD(params, momentum=MOMENTUM, weight_decay=0.0),
}
