"""Merging: the adapter's update is added to the base weights, and nothing of the adapter remains."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from capaft.attach import detach, get
from capaft.errors import UsageError


def merge(model: nn.Module, name: str = "default") -> int:
    """Add an adapter's update to the base weights and take the adapter off.

    The sum is taken in float32 (or the weight's own precision, if higher) and rounded once.

    Args:
        model: a model with an adapter; changed in place.
        name: the adapter's name.

    Returns:
        How many sites were merged.

    Raises:
        UsageError: there is no such adapter, a weight is quantised, or a weight is shared with another module, which
            the update would reach as well.
    """
    adapter = get(model, name)
    owners: dict[int, list[str]] = {}
    for path, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(parameter.data_ptr(), []).append(path)
    for site in adapter.plan.sites:
        weight: Any = model.get_submodule(site.module).weight
        if not weight.is_floating_point():
            raise UsageError(f"{site.module} is quantised; load the base model unquantised to merge into it")
        shared = owners.get(weight.data_ptr(), [])
        if len(shared) > 1:
            raise UsageError(f"{' and '.join(shared)} are one tied weight; an update cannot be merged into one")
    with torch.no_grad():
        for site, left, right in adapter.products():
            part = site.weight(model)
            exact = torch.promote_types(part.dtype, torch.float32)
            part.copy_(part.to(exact).addmm_(left.to(part.device, exact), right.to(part.device, exact)))
    count = len(adapter.plan.sites)
    detach(model, name)
    return count
