"""Merge adapters: add their updates to the base weights, and take them off."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Collection, Mapping
from itertools import product
from typing import get_args

import torch
from torch import nn

from capaft.adapter.activation import active_names, disabled, get_adapter
from capaft.adapter.dequantise import dequantise as dequantise_layers
from capaft.adapter.install import detach
from capaft.adapter.merged_weight import Rounding, Update, add_updates
from capaft.adapter.module import Adapter, adapters, carrier
from capaft.config.choices import Quantised
from capaft.methods.head import Head
from capaft.model.names import base_parameters, canonical_name, in_head
from capaft.model.site import is_quantised
from capaft.model.weights import device_of, weight_owners
from capaft.support.errors import UsageError

# Relative error that rounding may add to an update without a word.
MOST_ROUNDING = 0.1


def merge(
    model: nn.Module,
    name: str | None = None,
    *,
    quantised: Quantised = "refuse",
    weights: Mapping[str, float] | None = None,
) -> int:
    """Add an adapter's update to the base weights, make its head and labels the model's own, and take it off.

    The sum is taken in float32 (or the weight's own precision, if higher) and rounded once.

    Args:
        model: a model with an adapter; changed in place.
        name: the adapter's name; without it, all active adapters.
        quantised: `dequantise` first turns every quantised layer of the model into a plain one, with the weight that it
            computes with.
        weights: several adapters by name, each with a factor for its update: their exact sum is added, and the head and
            the labels are those of the first.

    Returns:
        Number of merged sites, not counting the head's parameters.

    Raises:
        UsageError: the model has no such adapter, its method does not change weights or its updates do not add up, a
            layer has been replaced, or a weight is quantised (and is to stay so, or cannot be told), offloaded,
            computed from other parameters, or shared with another module, which the update would reach as well. Nothing
            was changed.

    Example:
        >>> adapter = capaft.attach(model, "nola", k=16, rank=2, seed=7)
        >>> capaft.merge(model)
        4
        >>> capaft.adapters(model)
        {}
    """
    return merge_measured(model, name, quantised=quantised, weights=weights)[0]


def merge_measured(
    model: nn.Module,
    name: str | None = None,
    *,
    quantised: Quantised = "refuse",
    weights: Mapping[str, float] | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[int, Rounding]:
    """Merge as `merge` does, and measure what rounding costs.

    Args:
        model: see `merge`.
        name: see `merge`.
        quantised: see `merge`.
        weights: see `merge`.
        dtype: that the caller rounds all weights to afterwards; None if they stay as they are.

    Returns:
        What `merge` returns, and the cost of rounding.

    Raises:
        UsageError: see `merge`.
    """
    if quantised not in get_args(Quantised):
        raise UsageError(f"--quantised must be one of {', '.join(get_args(Quantised))}, got {quantised!r:.200}")
    present = adapters(model)
    names = [name] if name is not None else active_names(model) if present else ["default"]
    if weights is not None:
        if name is not None:
            raise UsageError("name and weights cannot be given together; name the adapters in weights")
        names = list(weights)
    if not names:
        raise UsageError(f"no adapter is active; name the one to merge: {', '.join(present)}")
    merged = {name: get_adapter(model, name) for name in names}
    model = carrier(model)
    with disabled(model):
        for adapter in merged.values():
            check_mergeable(model, adapter, quantised=quantised)
        if weights is not None:
            check_sum(model, merged, weights)
        for index, adapter in enumerate(merged.values()):
            earlier = list(merged)[:index]
            _refuse_order(adapter, {n: a for n, a in adapters(model).items() if n not in earlier})
        touched = [site.module for adapter in merged.values() for site in adapter.plan.sites]
        rounded = dequantise_layers(model, touched) if quantised == "dequantise" else {}
    rounded |= _unrounded(model, {path for path, count in Counter(touched).items() if len(merged) > 1 and count > 1})
    finals: dict[torch.Tensor, torch.dtype] = {weight: dtype or final for weight, final in rounded.items()}
    rounding = Rounding()
    for index, name in enumerate(merged):
        with_head = weights is None or index == 0
        cost = _merge(model, name, (weights or {}).get(name, 1.0), finals, dtype, with_head=with_head)
        warn_of_rounding(cost, stacklevel=4)
        rounding.include(cost)
    for weight, final in finals.items():
        weight.data = weight.data.to(final)
    if others := [name for name in present if name not in merged]:
        stay = "stays" if len(others) == 1 else "stay"
        warnings.warn(
            f"{', '.join(others)} {stay} on the model, whose weights are other ones now; load the base model anew to "
            "use what was trained on it",
            stacklevel=4,
        )
    return sum(len(adapter.plan.sites) for adapter in merged.values()), rounding


def check_sum(model: nn.Module, merged: Mapping[str, Adapter], weights: Mapping[str, float]) -> None:
    """Refuse adapters whose weighted updates do not add up to one.

    Args:
        model: the model.
        merged: the adapters by name.
        weights: the factor of each.

    Raises:
        UsageError: the update of one depends on the base weights, or one trains a part of the model's body directly.
    """
    for index, (name, adapter) in enumerate(merged.items()):
        weight, host = weights[name], adapter.plan.stack.host
        if not isinstance(weight, int | float) or not math.isfinite(weight):
            raise UsageError(f"--weights must be finite numbers, got {weight!r:.50}")
        if len(merged) == 1 and weight == 1:
            return
        if host is not None and not host.additive:
            raise UsageError(
                f"{host.name} cannot be merged in a weighted sum: its update depends on the weights that it is added "
                "to; merge it alone"
            )
        for parameter in adapter.plan.trained if index else ():
            if not in_head(model, _module_of(model, adapter, parameter)):
                raise UsageError(
                    f"{name} trained {parameter} directly, which cannot be added to what the others have there; put it "
                    "first, or merge it alone"
                )


def _module_of(model: nn.Module, adapter: Adapter, parameter: str) -> str:
    """Path of the module that holds a parameter of an adapter, by its canonical name."""
    names = {canonical_name(model, name, adapter.plan.rename): name for name in base_parameters(model)}
    return names[parameter].rpartition(".")[0]


def _unrounded(model: nn.Module, paths: Collection[str]) -> dict[nn.Parameter, torch.dtype]:
    """Hold the parameters of some layers in float32 at least; the dtypes that they had."""
    dtypes: dict[nn.Parameter, torch.dtype] = {}
    for path in paths:
        for parameter in model.get_submodule(path).parameters(recurse=False):
            exact = torch.promote_types(parameter.dtype, torch.float32)
            if exact != parameter.dtype and not is_quantised(parameter):
                dtypes[parameter] = parameter.dtype
                parameter.data = parameter.data.to(exact)
    return dtypes


def check_mergeable(
    model: nn.Module, adapter: Adapter, *, quantised: Quantised = "refuse", on_disk: bool = False
) -> None:
    """Refuse an adapter that cannot be merged.

    Args:
        model: the model.
        adapter: an adapter of it.
        quantised: what is to become of quantised layers.
        on_disk: the model's weights are on disk, and are not missed here.

    Raises:
        UsageError: its method does not change weights, or a weight cannot be changed.
    """
    adapter.check_places(model)
    host = adapter.plan.stack.host
    if host is not None and host.unmergeable:
        raise UsageError(f"{host.name} cannot be merged: {host.unmergeable}; keep the adapter beside the base model")
    # By memory: the update is written in place, and reaches every parameter that shares it.
    key = id if on_disk else torch.Tensor.data_ptr
    owners = weight_owners(model, key=key)
    for _, site in adapter.plan.placed:
        if site.is_quantised(model):
            if quantised == "dequantise":
                continue
            raise UsageError(
                f"{site.module} is quantised; load the base model unquantised to merge into it, or pass --quantised "
                "dequantise"
            )
        weight = site.stored(model)
        if weight.is_meta and not on_disk:
            raise UsageError(f"{site.module} is offloaded; load the base model without offloading to merge into it")
        if site.is_computed(model):
            raise UsageError(
                f"{site.module} computes its {site.parameter} from other parameters, so nothing can be added to it; "
                "remove its parametrisation before attaching, to merge"
            )
        shared = owners[key(weight)]
        if len(shared) > len(site.modules):
            names = " and ".join(map(".".join, shared))
            raise UsageError(f"{names} are one tied weight; load the base model untied to merge into it")


def _merge(
    model: nn.Module,
    name: str,
    factor: float,
    finals: Mapping[torch.Tensor, torch.dtype],
    dtype: torch.dtype | None,
    *,
    with_head: bool,
) -> Rounding:
    """Merge one adapter, its update times a factor; the cost of rounding, also of that which is still to come."""
    adapter, rounding = get_adapter(model, name), Rounding()
    # An autocast around the call would round the products.
    with disabled(model), torch.no_grad(), torch.autocast(device_of(model).type, enabled=False):
        _keep_heads_of_others(model, adapter)
        if with_head:
            adapter.give(model)
        for index, (host, site) in enumerate(adapter.plan.placed):
            if isinstance(host, Head) and not with_head:
                continue
            bias = model.get_submodule(site.module)._parameters.get("bias")
            weight = 1.0 if isinstance(host, Head) else factor
            update = Update(host, site, adapter.factors_of_place(index), weight)
            stored = site.stored(model)
            add_updates(stored, bias, [update], rounding, finals.get(stored, dtype))
        detach(model, name)
    return rounding


def warn_of_rounding(rounding: Rounding, stacklevel: int = 2) -> None:
    """Say what rounding costs where that is much."""
    if rounding.error > MOST_ROUNDING:
        coarse = str(rounding.coarsest).removeprefix("torch.")
        warnings.warn(
            f"the update is rounded to {coarse} with the weights, an error of {rounding.error:.0%} of its size; a base "
            "model loaded in float32 would keep it whole",
            stacklevel=stacklevel + 1,
        )


def _keep_heads_of_others(model: nn.Module, merged: Adapter) -> None:
    """Give other adapters whose head starts from the model's a copy of it, before it becomes that of this adapter."""
    base = {canonical_name(model, name, merged.plan.rename): p for name, p in base_parameters(model).items()}
    for other in adapters(model).values():
        moved = {f"{site.path}.{site.parameter}".removeprefix(".") for site in other.plan.head.parameters}
        for name in sorted(moved & set(merged.substitutes.names) - set(other.substitutes.names)):
            if other is not merged:
                other.substitutes.add(name, nn.Parameter(base[name].detach().clone(), requires_grad=False))


def _refuse_order(adapter: Adapter, present: dict[str, Adapter]) -> None:
    """Refuse a merge that would put this adapter before another one that it follows now.

    Raises:
        UsageError: the two do not commute, or the later one depends on the base weights.
    """
    names = list(present)
    first = present[names[0]]
    others = {name: other for name, other in present.items() if other is not adapter}
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
