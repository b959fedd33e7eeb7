"""How many numbers an adapter trains, and which size of it comes closest to a budget from below."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from capaft.errors import UsageError
from capaft.factor import numbers_bounds
from capaft.methods.stack import Stack
from capaft.plan import Plan, plan
from capaft.rng import Streams


def trained_numbers(decided: Plan) -> int:
    """Numbers that the plan's adapter trains, a head not counted; random masks are drawn to count their union."""
    total = 0
    copies = decided.stack.copies
    for role, groups in decided.groups().items():
        for factor, sites in groups:
            low, high = numbers_bounds(factor, decided.stack.coefficients(factor), copies)
            if low == high or copies is None:
                total += low * len(sites)
                continue
            for site in sites:
                total += int(copies.draw(factor, Streams(decided.seed, site.path, role)).any(0).sum())
    return total


def fit(model: nn.Module, stack: Stack, budget: int, **placing: Any) -> Stack:
    """The stack with k, or with the rank where factors are dense, so that it trains at most `budget` numbers.

    Args:
        model: the base model.
        stack: the stack whose size is chosen.
        budget: trained numbers, a head not counted.
        **placing: as for :func:`capaft.attach.plan`.

    Raises:
        UsageError: even the smallest size trains more, or the method has no size.
    """
    if stack.host is None:
        raise UsageError(f"--budget has no meaning for --method {stack.method}; choose a stack such as nola or lora")
    decided = plan(model, _sized(stack, 1), **placing)
    smallest = trained_numbers(decided)
    size = budget // smallest
    if size < 1:
        raise UsageError(f"--budget {budget} is below the {smallest} numbers that the smallest {stack.method} trains")
    if stack.k is not None:
        return _sized(stack, size)
    # The union of masks at rank r is not exactly r times that at rank 1, but close: step from the estimate.
    widest = min(max(site.in_features, site.out_features) for site in decided.sites)
    size = min(size, widest // (stack.copies.copies if stack.copies else 1))

    def count(rank: int) -> int:
        return trained_numbers(replace(decided, stack=_sized(stack, rank)))

    while size > 1 and count(size) > budget:
        size -= 1
    while (size + 1) * (stack.copies.copies if stack.copies else 1) <= widest and count(size + 1) <= budget:
        size += 1
    return _sized(stack, size)


def _sized(stack: Stack, size: int) -> Stack:
    """The stack with that k, or that rank at the same scale."""
    if stack.k is not None:
        return replace(stack, k=(size, size))
    host: Any = stack.host
    return replace(stack, host=replace(host, rank=size, alpha=host.scale * size))
