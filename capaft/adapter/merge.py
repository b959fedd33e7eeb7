"""Merge an adapter: add its update to the base weights and take the adapter off."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import torch
from torch import nn

from capaft.adapter.attach import detach, get_adapter
from capaft.adapter.dequantise import dequantise as dequantise_layers
from capaft.adapter.module import Adapter, adapters
from capaft.model.weights import device_of, weight_owners
from capaft.support.errors import UsageError


def merge(model: nn.Module, name: str = "default", *, dequantise: bool = False) -> int:
    """Add an adapter's update to the base weights and take the adapter off.

    The sum is taken in float32 (or the weight's own precision, if higher) and rounded once.

    Args:
        model: a model with an adapter; changed in place.
        name: the adapter's name.
        dequantise: first turn every quantised layer of the model into a plain one, with the weight that it computes
            with.

    Returns:
        Number of merged sites, not counting the head's parameters.

    Raises:
        UsageError: the model has no adapter of this name, its method does not change weights, a layer has been
            replaced, or a weight is quantised (and is to stay so, or cannot be told), offloaded, computed from other
            parameters, or shared with another module, which the update would reach as well.

    Example:
        >>> adapter = capaft.attach(model, "nola", k=16, rank=2, seed=7)
        >>> capaft.merge(model)
        4
        >>> capaft.adapters(model)
        {}
    """
    adapter = get_adapter(model, name)
    adapter.check_places(model)
    host = adapter.plan.stack.host
    if host is not None and host.unmergeable:
        raise UsageError(f"{host.name} cannot be merged: {host.unmergeable}; keep the adapter beside the base model")
    # By memory: the update is written in place, and reaches every parameter that shares it.
    owners = weight_owners(model, key=lambda parameter: parameter.data_ptr())
    for _, site in adapter.plan.placed:
        if site.is_quantised(model):
            if dequantise:
                continue
            raise UsageError(
                f"{site.module} is quantised; load the base model unquantised to merge into it, or pass --dequantise"
            )
        weight = site.stored(model)
        if weight.is_meta:
            raise UsageError(f"{site.module} is offloaded; load the base model without offloading to merge into it")
        if site.is_computed(model):
            raise UsageError(
                f"{site.module} computes its {site.parameter} from other parameters, so nothing can be added to it; "
                "remove its parametrisation before attaching, to merge"
            )
        shared = owners[weight.data_ptr()]
        if len(shared) > len(site.modules):
            names = " and ".join(map(".".join, shared))
            raise UsageError(f"{names} are one tied weight; load the base model untied to merge into it")
    _refuse_order(model, adapter)
    if dequantise:
        dequantise_layers(model)
    # An autocast around the call would round the products.
    with torch.no_grad(), torch.autocast(device_of(model).type, enabled=False):
        for (host, site), factors in zip(adapter.plan.placed, adapter.expand(), strict=True):
            weight, bias = site.stored(model), model.get_submodule(site.module)._parameters.get("bias")
            if site.index is not None:
                weight, site = weight[site.index], replace(site, index=None)
            exact = torch.promote_types(weight.dtype, torch.float32)
            whole = weight.to(exact, copy=True)
            old_bias = None if bias is None else (site.rows.take(bias, 0) if site.rows else bias).to(exact)
            matrix, new_bias = host.merged(
                site, site.matrix(whole), old_bias, tuple(factor.to(weight.device, exact) for factor in factors)
            )
            weight.copy_(site.replaced(whole, matrix))
            if bias is not None and new_bias is not old_bias and new_bias is not None:
                target = site.rows.view(bias, 0) if site.rows else bias
                target.copy_(new_bias.view(target.shape))
    count = len(adapter.plan.sites)
    detach(model, name)
    return count


def _refuse_order(model: nn.Module, adapter: Adapter) -> None:
    """Refuse a merge that would put this adapter before another one that it follows now.

    Raises:
        UsageError: the two do not commute, or the later one depends on the base weights.
    """
    names = list(adapters(model))
    first = adapters(model)[names[0]]
    others = {name: other for name, other in adapters(model).items() if other is not adapter}
    other_places = [(name, *place) for name, other in others.items() for place in other.plan.placed]
    for (host, site), (name, other_host, other_site) in product(adapter.plan.placed, other_places):
        shared = set(site.modules) & set(other_site.modules)
        if not shared or (host.additive and other_host.additive):
            continue
        if adapter is not first or other_host.name == "dora":
            raise UsageError(
                f"{min(shared)} also has the adapter {name} ({other_host.name}), and the two do not add up; merge "
                f"{names[0]} first, or detach {name}"
            )
