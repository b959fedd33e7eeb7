"""Put the adapter of a plan into a model, and take it out again.

Either leaves nothing behind: an installation that fails half-way, for whatever reason, is taken back.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from capaft.adapter.activation import activate, active_names, disabled, get_adapter
from capaft.adapter.dropout import check_dropout, takes_dropout
from capaft.adapter.head_of_adapter import own_labels, own_tensors
from capaft.adapter.hooks import AttentionAdapter, SiteAdapter, parametrised
from capaft.adapter.module import Adapter, adapters, carrier
from capaft.adapter.plan import Plan
from capaft.adapter.replacing import watch_registrations
from capaft.adapter.statistics import hold_statistics, release_statistics
from capaft.adapter.substitutes import Substitutes
from capaft.adapter.trainable import freeze, release, thaw
from capaft.model.labels import Labels
from capaft.model.layers import has_own_backward
from capaft.model.names import CHILD_PREFIX, base_parameters, canonical_name, input_embeddings
from capaft.model.other_adapters import refuse_other_adapters
from capaft.model.quantised import check_gradients, quantised_layers
from capaft.model.site import Site, is_quantised
from capaft.model.weights import device_of
from capaft.support.errors import UsageError

# Handles of an adapter's hooks on the model, by its name. They are the model's, since they hold it: an adapter that is
# copied or pickled alone must not drag the model along.
_HANDLES = "capaft_handles"


# Parameters made in inference mode could never be trained.
@torch.inference_mode(False)
def attach_plan(
    model: nn.Module,
    plan: Plan,
    *,
    name: str = "default",
    dropout: float = 0.0,
    start: Mapping[str, torch.Tensor] | None = None,
    labels: Labels | None = None,
    in_place: bool = False,
    trains: bool = True,
) -> Adapter:
    """Freeze a model and attach the adapter of a plan; see `attach`.

    Args:
        model: the base model.
        plan: every decision about the adapter.
        name: the adapter's name on the model.
        dropout: share of the adapter's input that is zeroed while the model trains.
        start: values of the head's parameters that are not the model's, by canonical name.
        labels: the labels of the adapter's head; None for the model's.
        in_place: train the model's own tensors, without a copy of what they were: for a run that owns the model.
        trains: False if the adapter is attached to be used only, so that no gradient has to pass through the model.

    Raises:
        UsageError: the name or the dropout cannot be used, an adapter is on a part of the model or around it, a
            parameter to train is offloaded or quantised, a weight to change is computed from others, no gradient passes
            through a layer, or the model has another library's adapter.
    """
    refuse_other_adapters(model)
    _refuse_beside_bank(model)
    present = adapters(model)
    if name in present:
        raise UsageError(f"the model already has an adapter named {name}; detach it or choose another name")
    known = {*present.values()}
    if any(isinstance(module, SiteAdapter) and module.owner[0] not in known for module in model.modules()):
        raise UsageError(
            "the model has an adapter that was attached to a part of it or to a wrapper around it, and the two would "
            "not know of each other; attach both to the same module"
        )
    if not name.isidentifier():
        raise UsageError(f"an adapter's name must be an identifier, got {name!r}")
    check_dropout(plan.stack, dropout)
    if any(not set(adapter.plan.trained) <= set(adapter.substitutes.names) for adapter in present.values()):
        raise UsageError("the model itself is being trained, and has no room for a second adapter")
    is_first = not active_names(model)
    with disabled(model):
        model = carrier(model)
        _check_parameters(model, plan, start or {})
        if trains and plan.sites:
            check_gradients(model)
        adapter = Adapter(plan, dropout)
        adapter.to(device_of(model))
        adapter.enabled = False
        if not in_place:
            adapter.substitutes = Substitutes(own_tensors(model, plan, start or {}), plan.rename)
            adapter.labels = own_labels(model, plan, labels)
        flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        try:
            _install(model, adapter, name)
            if not in_place:
                _register_state(model, adapter, name)
        except BaseException:
            _take_out(model, adapter, name)
            for parameter, flag in flags:
                parameter.requires_grad_(flag)
            raise
    if is_first:
        activate(model, [name])
    return adapter


def _refuse_beside_bank(model: nn.Module) -> None:
    """Refuse a model on which a bank acts: both would change the same outputs.

    Raises:
        UsageError: there is one.
    """
    for module in model.modules():
        for hook in module._forward_pre_hooks.values():
            if getattr(getattr(hook, "__self__", None), "excludes_adapters", False):
                raise UsageError("a bank acts on this model; close it first, or add the adapter's file to the bank")


def _check_parameters(model: nn.Module, plan: Plan, start: Collection[str]) -> None:
    """Check that the model has the values of what the adapter is to replace or to compute with.

    Args:
        model: the base model.
        plan: the plan.
        start: canonical names of the parameters that start with other values than the model's.

    Raises:
        UsageError: a parameter is offloaded, quantised, or computed from others.
    """
    coded = quantised_layers(model) if start else {}
    for path, parameter in base_parameters(model).items():
        name = canonical_name(model, path, plan.rename)
        if name not in plan.trained and name not in start:
            continue
        if parameter.is_meta:
            raise UsageError(f"{path} is offloaded and cannot be trained; keep it on a device with device_map")
        if path.rpartition(".")[0] in coded:
            raise UsageError(f"{path} is quantised and cannot be replaced by that of another head; load it unquantised")
        if is_quantised(parameter):
            raise UsageError(f"{path} is quantised and cannot be trained directly; leave it out")
    for host, site in plan.placed:
        if parametrised(host, site) and site.is_computed(model):
            raise UsageError(f"{site.module} computes its {site.parameter} from other parameters; leave it out")


def _install(model: nn.Module, adapter: Adapter, name: str) -> None:
    """Put an inactive adapter and its hooks into the model."""
    plan, handles = adapter.plan, vars(model).setdefault(_HANDLES, {}).setdefault(name, [])
    watch_registrations()
    freeze(model, adapter)
    hold_statistics(model)
    if plan.stack.host:
        handles += plan.stack.host.prepare(model)
    for index, (_, site) in enumerate(plan.placed):
        for path in site.modules:
            module = model.get_submodule(path)
            child = (AttentionAdapter if site.kind == "attention" else SiteAdapter)(adapter, index)
            module.add_module(_child_name(name, site), child)
            adapter.places.append((*filter(None, path.split(".")), _child_name(name, site)))
            child.install(module, model.get_submodule(site.source) if site.source else None)
    silent = [site.path for site in plan.sites if adapter.dropout and not takes_dropout(plan, site)]
    if silent:
        warnings.warn(f"no dropout at {', '.join(silent[:3])}{' and others' if silent[3:] else ''}", stacklevel=6)
    model.add_module(CHILD_PREFIX + name, adapter)
    if plan.placed:
        handles.append(model.register_forward_pre_hook(adapter.before_forward))
        handles.append(model.register_forward_hook(adapter.after_forward, always_call=True))
        if has_own_backward(model) and (embeddings := input_embeddings(model)) is not None:
            handles.append(embeddings.register_forward_hook(_require_gradient))


def _register_state(model: nn.Module, adapter: Adapter, name: str) -> None:
    """Have the model write and read its state with the adapter's tensors apart from its own."""
    from capaft.adapter.file.pretrained import save_pretrained

    substitutes, handles = adapter.substitutes, vars(model)[_HANDLES][name]
    handles.append(model.register_load_state_dict_pre_hook(adapter.warn_of_missing))
    if substitutes.names:
        handles.append(model._register_state_dict_hook(substitutes.write_state))
        handles.append(model.register_load_state_dict_pre_hook(substitutes.read_state))
    if hasattr(model, "save_pretrained"):
        # A partial, since a closure could be neither copied nor pickled with the model.
        model.save_pretrained = partial(save_pretrained, model)  # type: ignore[assignment]


def detach(model: nn.Module, name: str = "default") -> Adapter:
    """Take an adapter off: hooks, modules and frozen flags are as they were before `attach`.

    So is every tensor, bit for bit, and the model's own head and labels are back in their places; `merge` keeps what
    was trained. If the adapter was active, no adapter takes its place until `switch`.

    Returns:
        The adapter, which keeps its parameters and its head.

    Raises:
        UsageError: the model has no adapter of this name, or one of its layers has been replaced.

    Example:
        >>> adapter = capaft.attach(model, "nola", k=16, rank=2, seed=7)
        >>> capaft.detach(model) is adapter
        True
        >>> all(p.requires_grad for p in model.parameters())
        True
    """
    adapter, model = get_adapter(model, name), carrier(model)
    adapter.check_places(model)
    if adapter.enabled:
        adapter.leave(model)
    release(model, adapter)
    with disabled(model):
        _take_out(model, adapter, name)
    return adapter


def _take_out(model: nn.Module, adapter: Adapter, name: str) -> None:
    """Undo `_install`, or as much of it as has been done; the adapters are inactive."""
    for _, site in adapter.plan.placed:
        for path in site.modules:
            module = model.get_submodule(path)
            if isinstance(child := module._modules.pop(_child_name(name, site), None), SiteAdapter):
                child.remove(module)
    handles = vars(model).get(_HANDLES, {})
    for handle in handles.pop(name, []):
        handle.remove()
    if not handles:
        vars(model).pop(_HANDLES, None)
    adapter.places = []
    model._modules.pop(CHILD_PREFIX + name, None)
    thaw(model)
    if not adapters(model):
        release_statistics(model)
        vars(model).pop("save_pretrained", None)


def _require_gradient(module: nn.Module, args: Any, output: Any) -> None:
    """Hook of the input embeddings, for a model whose autograd function needs an input that requires a gradient."""
    first = output if isinstance(output, torch.Tensor) else output[0]
    if torch.is_grad_enabled() and first.is_floating_point() and not first.requires_grad:
        first.requires_grad_(True)


def _child_name(name: str, site: Site) -> str:
    """Name of a site's child module; a fused projection has one for each part, packed experts one for each matrix.

    A module of the head has one per parameter, beside any other child.

    No adapter's name has a `#`, so these names clash neither with each other nor with the adapter's own.
    """
    part = f"head:{site.parameter}" if site.kind == "head" else site.part
    return f"{CHILD_PREFIX}{name}#" + part.replace(".", ":")
