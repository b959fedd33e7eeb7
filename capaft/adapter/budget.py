"""Count an adapter's trainable parameters, and find the largest size within a budget of them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from capaft.adapter.bounds import largest_size, most_coefficients
from capaft.adapter.plan import DEFAULT_PLACEMENT, Placement, Plan, make_plan
from capaft.factors.rng import Streams
from capaft.methods.head import Head
from capaft.methods.stack import Stack, parse_stack
from capaft.model.names import base_parameters, canonical_path
from capaft.support.errors import UsageError


def count_trainable(plan: Plan) -> int:
    """Trainable parameters of a plan's adapter without the head; random masks are drawn to count their union."""
    plan = replace(plan, head=Head())
    bounds = plan.bounds()
    if all(low == high for low, high in bounds.values()):
        return sum(low for low, _ in bounds.values())
    total = 0
    for role, groups in plan.groups().items():
        low, high = bounds.get(role, (0, 0))
        if low == high:
            total += low
            continue
        for factor, sites in groups:
            copies = plan.stack.copies_of(factor)
            for site in sites:
                masks = copies.draw(factor, Streams(plan.seed, site.path, role)) if copies else None
                total += factor.size if masks is None else int(masks.any(0).sum())
    return total


def fit_to_budget(model: nn.Module, stack: Stack, budget: int, placement: Placement = DEFAULT_PLACEMENT) -> Stack:
    """The stack with the largest k, or rank where factors are dense, that has at most `budget` trainable parameters.

    Args:
        model: the base model.
        stack: the stack whose size is chosen.
        budget: trainable parameters, not counting a head.
        placement: where the adapter goes.

    Raises:
        UsageError: even the smallest size has more, or the method has one size only.
    """
    if stack.host is None or not (stack.k or stack.host.size):
        raise UsageError(f"--budget cannot be used with --method {stack.method}, which has one size only; drop it")
    # Sites depend neither on the size nor on masks, and masks may keep nothing of the smallest factors.
    plan = make_plan(model, _sized(replace(stack, copies=None), 1), placement)
    sizes: Sequence[int] = (1,) if stack.k else range(1, _largest_size(replace(plan, stack=stack)) + 1)
    least = next((size for size in sizes if _masks_keep(replace(plan, stack=_sized(stack, size)))), sizes[-1])

    def count(size: int) -> int:
        return count_trainable(replace(plan, stack=_sized(stack, size)))

    smallest = count(least)
    if smallest > budget:
        raise UsageError(
            f"--budget {budget} is below the {smallest} trainable parameters of the smallest {stack.method}; raise it"
        )
    most = min(budget, _largest_k(plan, stack)) if stack.k else sizes[-1]
    # The count is nearly proportional to the size: biases and the unions of masks make little difference.
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
    if size == most < budget and not stack.k and len(plan.sites) > 1:
        _warn_of_narrow(replace(plan, stack=stack))
    return _sized(stack, size)


def _masks_keep(plan: Plan) -> bool:
    """True if masks keep something of every factor."""
    factors = [factor for groups in plan.groups().values() for factor, _ in groups]
    masked = [(plan.stack.copies_of(factor), factor.size) for factor in factors]
    return all(copies is None or copies.masks == "partition" or copies.kept(size) for copies, size in masked)


def _largest_size(plan: Plan) -> int:
    """The largest rank that every layer has room for, copies counted."""
    return max(1, min(_sizes(plan).values()))


def _largest_k(plan: Plan, stack: Stack) -> int:
    """The largest number of coefficients that every factor has room for."""
    groups = replace(plan, stack=stack).groups().values()
    sizes = [factor.size for of_role in groups for factor, _ in of_role if len(factor.shape) > 1 and not factor.frozen]
    return most_coefficients(stack, min(sizes, default=1))


def _sizes(plan: Plan) -> dict[str, int]:
    """The largest rank of each site that has none of its own, copies counted."""
    host, copies = plan.stack.host, plan.stack.copies
    assert host is not None
    sites = [site for site in plan.sites if site.rank is None] or plan.sites
    return {site.path: largest_size(host, site, copies.copies if copies else 1) for site in sites}


def _warn_of_narrow(plan: Plan) -> None:
    """Warn that narrow layers alone keep the rank small."""
    sizes = _sizes(plan)
    least = min(sizes.values())
    narrow = [path for path, size in sizes.items() if size == least]
    if 4 * least <= max(sizes.values()):
        warnings.warn(
            f"the rank stops at {least}, the most that {narrow[0]} has room for; leave such layers out with "
            "--exclude-modules for a larger one",
            stacklevel=3,
        )


def _sized(stack: Stack, size: int) -> Stack:
    """The stack with this k, or with this rank at the same scale."""
    if stack.k is not None:
        return replace(stack, k=(size, size))
    assert stack.host is not None
    changed: dict[str, Any] = {stack.host.size: size}
    alpha = getattr(stack.host, "alpha", None)
    if alpha is not None and not getattr(stack.host, "rslora", False):
        changed["alpha"] = alpha / getattr(stack.host, stack.host.size) * size
    return replace(stack, host=replace(stack.host, **changed))  # type: ignore[type-var]


def count_stack(model: nn.Module, method: str) -> dict[str, Any]:
    """Count the sites and trainable parameters of a stack with its default options on a model.

    Returns:
        `sites`, and `numbers`: the fewest and the most trainable parameters, not counting a task's head. They differ
        for random masks, which are not drawn. Or only `reason`: why the model cannot take the method.
    """
    try:
        plan = make_plan(model, parse_stack(method))
    except UsageError as error:
        return {"reason": str(error)}
    sizes = {canonical_path(model, name): parameter.numel() for name, parameter in base_parameters(model).items()}
    direct = sum(sizes[name] for name in plan.trained)
    bounds = plan.bounds().values()
    return {"sites": len(plan.sites), "numbers": [direct + sum(bound[i] for bound in bounds) for i in (0, 1)]}
