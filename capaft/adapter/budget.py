"""How many numbers an adapter trains, and which size of it comes closest to a budget from below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from capaft.adapter.plan import Plan, hidden_limit, make_plan
from capaft.factors.rng import Streams
from capaft.methods.head import Head
from capaft.methods.stack import Stack, parse_stack
from capaft.model.names import base_parameters, canonical_path
from capaft.support.errors import UsageError


def count_trainable(decided: Plan) -> int:
    """Numbers that the plan's adapter trains, a head not counted; random masks are drawn to count their union."""
    decided = replace(decided, head=Head())
    bounds = decided.bounds()
    if all(low == high for low, high in bounds.values()):
        return sum(low for low, _ in bounds.values())
    total = 0
    for role, groups in decided.groups().items():
        low, high = bounds.get(role, (0, 0))
        if low == high:
            total += low
            continue
        for factor, sites in groups:
            copies = decided.stack.copies_of(factor)
            for site in sites:
                drawn = copies.draw(factor, Streams(decided.seed, site.path, role)) if copies else None
                total += factor.size if drawn is None else int(drawn.any(0).sum())
    return total


def fit_to_budget(model: nn.Module, stack: Stack, budget: int, **placing: Any) -> Stack:
    """The stack with k, or with the rank where factors are dense, so that it trains at most `budget` numbers.

    Args:
        model: the base model.
        stack: the stack whose size is chosen.
        budget: trained numbers, a head not counted.
        **placing: as for `plan`.

    Raises:
        UsageError: even the smallest size trains more, or the method has no size.
    """
    if stack.host is None or not (stack.k or stack.host.size):
        raise UsageError(f"--budget has no meaning for --method {stack.method}, which has one size only; drop it")
    # The sites do not depend on the size, nor on masks, which may keep nothing of the smallest factors.
    decided = make_plan(model, _sized(replace(stack, copies=None), 1), **placing)
    sizes: Sequence[int] = (1,) if stack.k else range(1, _widest(replace(decided, stack=stack)) + 1)
    least = next((size for size in sizes if _keeps(replace(decided, stack=_sized(stack, size)))), sizes[-1])

    def count(size: int) -> int:
        return count_trainable(replace(decided, stack=_sized(stack, size)))

    smallest = count(least)
    if smallest > budget:
        raise UsageError(f"--budget {budget} is below the {smallest} numbers that the smallest {stack.method} trains")
    most = budget if stack.k else sizes[-1]
    # Nearly proportional, so start from the proportion; what of it does not grow (biases, unions of masks) is little.
    size = max(least, min(most, least * budget // smallest))
    step = 1
    while size < most and count(min(most, size + step)) <= budget:
        size, step = min(most, size + step), 2 * step
    high = min(most, size + step)
    while size > least and count(size) > budget:
        high, size = size, max(least, size // 2)
    while high - size > 1:
        middle = (size + high) // 2
        size, high = (middle, high) if count(middle) <= budget else (size, middle)
    return _sized(stack, size)


def _keeps(decided: Plan) -> bool:
    """Whether masks leave something of every factor."""
    groups = [group for role in decided.groups().values() for group in role]
    copies = [(decided.stack.copies_of(factor), factor.size) for factor, _ in groups]
    return all(each is None or each.masks == "partition" or each.kept(size) for each, size in copies)


def _widest(decided: Plan) -> int:
    """The largest rank that every layer has room for, copies counted."""
    host, copies = decided.stack.host, decided.stack.copies
    assert host is not None
    return max(1, min(hidden_limit(site, host) for site in decided.sites) // (copies.copies if copies else 1))


def _sized(stack: Stack, size: int) -> Stack:
    """The stack with that k, or that rank at the same scale."""
    if stack.k is not None:
        return replace(stack, k=(size, size))
    assert stack.host is not None
    changed: dict[str, Any] = {stack.host.size: size}
    alpha = getattr(stack.host, "alpha", None)
    if alpha is not None and not getattr(stack.host, "rslora", False):
        changed["alpha"] = alpha / getattr(stack.host, stack.host.size) * size
    return replace(stack, host=replace(stack.host, **changed))  # type: ignore[type-var]


def count_stack(model: nn.Module, method: str) -> dict[str, Any]:
    """What a stack with its default options comes to on a model.

    Returns:
        `sites`, and `numbers`: the fewest and the most that are trained, a task's head not counted. They differ for
        random masks, which are not drawn. Or else `reason`: why the model cannot take the method.
    """
    try:
        decided = make_plan(model, parse_stack(method))
    except UsageError as error:
        return {"reason": str(error)}
    sizes = {canonical_path(model, name): parameter.numel() for name, parameter in base_parameters(model).items()}
    own = sum(sizes[name] for name in decided.trained)
    bounds = decided.bounds().values()
    return {"sites": len(decided.sites), "numbers": [own + sum(bound[i] for bound in bounds) for i in (0, 1)]}
