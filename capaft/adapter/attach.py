"""Attaching an adapter to a model, taking it off again, and choosing among several."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from capaft.adapter.hooks import AttentionAdapter, SiteAdapter
from capaft.adapter.module import Adapter, adapters
from capaft.adapter.plan import Plan, make_plan
from capaft.methods.stack import Stack, parse_stack
from capaft.model.layers import has_own_backward
from capaft.model.names import CHILD_PREFIX, base_parameters, canonical_name, input_embeddings
from capaft.model.site import Site
from capaft.model.targets import Targets
from capaft.model.weights import device_of
from capaft.support.errors import UsageError

# What of the options is not the stack's, but says where it goes.
PLACING = ("seed", "head", "head_mode", "head_k", "modules_to_save", "rename")


def attach(model: nn.Module, method: str | Stack, *, name: str = "default", **options: Any) -> Adapter:
    """Freeze a model and attach an adapter to it.

    Args:
        model: the base model; changed in place.
        method: a method stack such as `"nola"`, or one already parsed.
        name: the adapter's name on this model.
        **options: `targets`, `exclude`, `layers` of `Targets`; `seed`, `head`, `head_mode`,
            `head_k`, `modules_to_save` and `rename` of `plan`; `dropout` of the adapter's input while
            the model trains; the rest are the stack's numbers, if it is not parsed yet.

    Returns:
        The adapter, also reachable as a child module of the model.

    Raises:
        UsageError: the stack, the targets or the name cannot be used.

    Example:
        >>> adapter = capaft.attach(model, "nola", k=16, rank=2, seed=7)
        >>> sum(p.numel() for p in model.parameters() if p.requires_grad)
        128
    """
    dropout = options.pop("dropout", 0.0)
    targets = options.pop("targets", "")
    if not isinstance(targets, Targets):
        targets = Targets(targets, options.pop("exclude", ""), options.pop("layers", ""))
    placing = {key: options.pop(key) for key in PLACING if key in options}
    if isinstance(method, Stack) and options:
        raise UsageError(f"the stack is parsed already; give its numbers to parse: {', '.join(sorted(options))}")
    stack = method if isinstance(method, Stack) else parse_stack(method, **options)
    return attach_plan(model, make_plan(model, stack, targets=targets, **placing), name=name, dropout=dropout)


def attach_plan(model: nn.Module, decided: Plan, *, name: str = "default", dropout: float = 0.0) -> Adapter:
    """Freeze a model and attach the adapter that a plan describes. See `attach`."""
    if name in adapters(model):
        raise UsageError(f"the model already has an adapter named {name}; detach it or choose another name")
    if not name.isidentifier():
        raise UsageError(f"an adapter's name must be an identifier, got {name!r}")
    check_dropout(decided.stack, dropout)
    for path, parameter in base_parameters(model).items():
        if parameter.is_meta and canonical_name(model, path, decided.rename) in decided.trained:
            raise UsageError(f"{path} is offloaded and cannot be trained; keep it on a device with device_map")
    adapter = Adapter(decided, dropout)
    adapter.to(device_of(model))
    adapter.freeze(model)
    if decided.stack.host:
        adapter.handles += decided.stack.host.prepare(model)
    for index, (_, site) in enumerate(decided.placed):
        for path in site.modules:
            module = model.get_submodule(path)
            beside = (AttentionAdapter if site.kind == "attention" else SiteAdapter)(adapter, index)
            module.add_module(_child(name, site), beside)
            beside.install(module, model.get_submodule(site.source) if site.source else None)
    if dropout and (silent := [site.path for site in decided.sites if not takes_dropout(decided, site)]):
        warnings.warn(f"no dropout at {', '.join(silent[:3])}{' and others' if silent[3:] else ''}", stacklevel=3)
    model.add_module(CHILD_PREFIX + name, adapter)
    if decided.placed:
        before = model.register_forward_pre_hook(adapter.before_forward)
        after = model.register_forward_hook(adapter.after_forward, always_call=True)
        adapter.handles += [before, after]
        if has_own_backward(model) and (embeddings := input_embeddings(model)) is not None:
            adapter.handles.append(embeddings.register_forward_hook(_ask_for_gradient))
    return adapter


def takes_dropout(decided: Plan, site: Site) -> bool:
    """Whether a site has an input that dropout can zero part of: not if its weight is changed, or if it looks up."""
    host = decided.stack.host
    return host is not None and not site.parametrised and site.kind in host.kinds - {"embedding"}


def check_dropout(stack: Stack, dropout: float) -> None:
    """Refuse a dropout that is none, or that a method has no place for.

    Raises:
        UsageError: says which.
    """
    if not 0 <= dropout < 1:
        raise UsageError(f"--dropout must be in [0, 1), got {dropout}")
    if dropout and not (stack.host and stack.host.drops):
        raise UsageError(f"--dropout has no meaning for {stack.method}, which has no input of its own; drop it")


def detach(model: nn.Module, name: str = "default") -> Adapter:
    """Take an adapter off: hooks, modules and frozen flags are as they were before `attach`.

    A head that was trained whole stays trained, since it is the model's own; one with coefficients is what it was.

    Raises:
        UsageError: there is no such adapter.

    Example:
        >>> adapter = capaft.attach(model, "nola", k=16, rank=2, seed=7)
        >>> capaft.detach(model) is adapter
        True
        >>> all(p.requires_grad for p in model.parameters())
        True
    """
    adapter = get_adapter(model, name)
    for _, site in adapter.plan.placed:
        for path in site.modules:
            module = model.get_submodule(path)
            child = _child(name, site)
            beside: Any = getattr(module, child)
            delattr(module, child)
            beside.remove(module)
    for handle in adapter.handles:
        handle.remove()
    adapter.handles = []
    delattr(model, CHILD_PREFIX + name)
    adapter.thaw(model)
    return adapter


def switch(model: nn.Module, *names: str) -> None:
    """Let the adapters of these names take part in the forward, and no others of the model's.

    Raises:
        UsageError: there is no such adapter.

    Example:
        >>> adapter = capaft.attach(model, "nola", k=16, rank=2, seed=7)
        >>> other = capaft.attach(model, "ia3", name="other")
        >>> capaft.switch(model, "other")
        >>> adapter.enabled, other.enabled
        (False, True)
    """
    wanted = [get_adapter(model, name) for name in names]
    for adapter in adapters(model).values():
        adapter.enabled = any(adapter is each for each in wanted)


def get_adapter(model: nn.Module, name: str = "default") -> Adapter:
    """The adapter of that name.

    Raises:
        UsageError: there is none.
    """
    found = adapters(model)
    if name not in found:
        raise UsageError(f"the model has no adapter named {name}; it has: {', '.join(found) or 'none'}")
    return found[name]


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """The base model alone, for as long as the context lasts. A head that was trained whole stays in place.

    Example:
        >>> adapter = capaft.attach(model, "nola", k=16, rank=2, seed=7)
        >>> for parameter in adapter.parameters():
        ...     _ = torch.nn.init.normal_(parameter)
        >>> ids = torch.tensor([[1, 2, 3]])
        >>> with capaft.disabled(model):
        ...     before = model(ids).pooler_output
        >>> torch.equal(model(ids).pooler_output, before)
        False
    """
    before = {adapter: adapter.enabled for adapter in adapters(model).values()}
    try:
        for adapter in before:
            adapter.enabled = False
        yield
    finally:
        for adapter, enabled in before.items():
            adapter.enabled = enabled


def _ask_for_gradient(module: nn.Module, args: Any, output: Any) -> None:
    """Hook of the input embeddings, where an autograd function gives gradients only if its input asks for one."""
    first = output if isinstance(output, torch.Tensor) else output[0]
    if torch.is_grad_enabled() and first.is_floating_point() and not first.requires_grad:
        first.requires_grad_(True)


def _child(name: str, site: Site) -> str:
    """Name of a site's child module; a fused projection has one for each part, packed experts one for each matrix.

    A module of the head has one for each parameter, beside any other that it may have.

    No adapter's name has a `#`, so none of these clashes with another or with the adapter itself.
    """
    part = f"head:{site.parameter}" if site.kind == "head" else site.part
    return f"{CHILD_PREFIX}{name}#" + part.replace(".", ":")
