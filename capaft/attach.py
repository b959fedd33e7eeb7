"""Attaching an adapter to a model: freeze, hook, expand once a forward; and taking it off again.

A site keeps its base module as it is, under its own name; the adapter stands beside it as a child module with a
forward hook. All sites' factors come from one expansion in a hook before the root's forward, inside the autograd graph,
so any optimiser, DDP, checkpointing and `transformers.Trainer` see ordinary parameters.

When factors are expanded:

- inside the root's forward, once, before it starts;
- while autograd recomputes a checkpointed block, the factors of the training forward serve again;
- outside both (a submodule called on its own), and whenever no gradient is wanted, the last expansion is kept until the
  numbers differ from a saved copy. Tensor version counters would be cheaper and wrong: fused optimisers and
  `.data` edits leave them unchanged.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from capaft.errors import UsageError
from capaft.factor import Expansion
from capaft.methods.stack import Stack, parse
from capaft.plan import CHILD_PREFIX, Plan, base_parameters, plan
from capaft.rng import Streams
from capaft.sites import Site, canonical

Factors = tuple[Tensor, ...]


def attach(model: nn.Module, method: str | Stack, *, name: str = "default", **options: Any) -> Adapter:
    """Freeze a model and attach an adapter to it.

    Args:
        model: the base model; changed in place.
        method: a method stack such as `"nola"`, or one already parsed.
        name: the adapter's name on this model.
        **options: `targets`, `seed`, `head` and `rename` of :func:`plan`; the rest are the stack's numbers.

    Returns:
        The adapter, also reachable as a child module of the model.

    Raises:
        UsageError: the stack, the targets or the name cannot be used.
    """
    placing = {key: options.pop(key) for key in ("targets", "seed", "head", "rename") if key in options}
    stack = method if isinstance(method, Stack) else parse(method, **options)
    return attach_plan(model, plan(model, stack, **placing), name=name)


def attach_plan(model: nn.Module, decided: Plan, *, name: str = "default") -> Adapter:
    """Freeze a model and attach the adapter that a plan describes. See :func:`attach`."""
    if name in adapters(model):
        raise UsageError(f"the model already has an adapter named {name}; detach it or choose another name")
    if not name.isidentifier():
        raise UsageError(f"an adapter's name must be an identifier, got {name!r}")
    adapter = Adapter(decided)
    device = next(model.parameters()).device
    adapter.to(device)
    adapter.freeze(model)
    for index, site in enumerate(decided.sites):
        module = model.get_submodule(site.module)
        beside = SiteAdapter(adapter, index)
        module.add_module(_child(name, site), beside)
        beside.handle = module.register_forward_hook(beside.hook, with_kwargs=True)
    model.add_module(CHILD_PREFIX + name, adapter)
    if decided.sites:
        before = model.register_forward_pre_hook(adapter.before_forward)
        after = model.register_forward_hook(adapter.after_forward, always_call=True)
        adapter.handles = [before, after]
    return adapter


def detach(model: nn.Module, name: str = "default") -> Adapter:
    """Take an adapter off: hooks, modules and frozen flags are as they were before :func:`attach`.

    A trained head stays trained, since it is the model's own parameter.
    """
    adapter = get(model, name)
    for site in adapter.plan.sites:
        module = model.get_submodule(site.module)
        beside = getattr(module, _child(name, site))
        beside.handle.remove()
        delattr(module, _child(name, site))
    for handle in adapter.handles:
        handle.remove()
    delattr(model, CHILD_PREFIX + name)
    adapter.thaw(model)
    return adapter


def adapters(model: nn.Module) -> dict[str, Adapter]:
    """The adapters on a model, by name."""
    return {
        child.removeprefix(CHILD_PREFIX): module
        for child, module in model.named_children()
        if isinstance(module, Adapter)
    }


def get(model: nn.Module, name: str = "default") -> Adapter:
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
    """The base model alone, for as long as the context lasts. A trained head stays in place."""
    before = {adapter: adapter.enabled for adapter in adapters(model).values()}
    try:
        for adapter in before:
            adapter.enabled = False
        yield
    finally:
        for adapter, enabled in before.items():
            adapter.enabled = enabled


class Adapter(nn.Module):
    """The trained numbers of one adapter, and the maps from them to every site's factors.

    Attributes:
        plan: what the adapter is.
        numbers: one float32 parameter a role: `(S, k)` for NOLA, flat for dense factors; in the order of
            :meth:`Plan.groups`.
        enabled: False while the base model is wanted alone.
    """

    def __init__(self, decided: Plan) -> None:
        super().__init__()
        self.plan = decided
        self.enabled = True
        self.numbers = nn.ParameterDict()
        # By role, the map of each group, in the order of the plan.
        self.expansions = nn.ModuleDict()
        self.handles: list[Any] = []
        self._rows: dict[str, list[tuple[int, list[int]]]] = {}
        position = {site.path: index for index, site in enumerate(decided.sites)}
        for role, groups in decided.groups().items():
            maps, starts = nn.ModuleList(), []
            for factor, sites in groups:
                streams = [Streams(decided.seed, site.path, role) for site in sites]
                coefficients = decided.stack.coefficients(factor)
                expansion, start = Expansion.build(factor, streams, coefficients, decided.stack.copies)
                maps.append(expansion)
                starts.append(start)
            self.expansions[role] = maps
            self.numbers[role] = nn.Parameter(torch.cat(starts))
            self._rows[role] = [
                (len(start), [position[site.path] for site in sites])
                for start, (_, sites) in zip(starts, groups, strict=True)
            ]
        self._flags: dict[str, bool] = {}
        self._current: list[Factors] | None = None
        self._kept: dict[bool, tuple[list[Factors], list[Tensor], torch.dtype]] = {}
        self._unfired: set[int] | None = set(range(len(decided.sites)))

    def expand(self, dtype: torch.dtype = torch.float32) -> list[Factors]:
        """Every site's factors, in the order of the plan's sites, differentiable in the numbers."""
        found: list[list[Tensor]] = [[] for _ in self.plan.sites]
        for role, groups in self._rows.items():
            start = 0
            for expansion, (rows, positions) in zip(self._maps(role), groups, strict=True):
                wide = expansion(self.numbers[role][start : start + rows]).to(dtype)
                start += rows
                for position, factor in zip(positions, wide.unbind(0), strict=True):
                    found[position].append(factor)
        return [tuple(factors) for factors in found]

    def _maps(self, role: str) -> nn.ModuleList:
        maps = self.expansions[role]
        assert isinstance(maps, nn.ModuleList)
        return maps

    def products(self) -> Iterator[tuple[Site, Tensor, Tensor]]:
        """Each site's update as `dW = left @ right`, float32, scale included; nothing for `head` and `full`."""
        with torch.no_grad():
            for site, factors in zip(self.plan.sites, self.expand(), strict=True):
                assert self.plan.stack.host is not None
                yield (site, *self.plan.stack.host.product(site, factors))

    def trained(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Every trained parameter by its name in the adapter file: a role, or `head:<parameter>`."""
        wanted = set(self.plan.trained)
        own = {canonical(model, name): p for name, p in model.named_parameters()} if wanted else {}
        return dict(self.numbers) | {f"head:{name}": own[name] for name in self.plan.trained}

    def freeze(self, model: nn.Module) -> None:
        """Leave only what the model's adapters train trainable; remember how it was before the first of them."""
        others = tuple(adapters(model).values())
        base = base_parameters(model)
        self._flags = others[0]._flags if others else {name: p.requires_grad for name, p in base.items()}
        trained = {name for adapter in (self, *others) for name in adapter.plan.trained}
        for name, parameter in base.items():
            parameter.requires_grad_(canonical(model, name) in trained)

    def thaw(self, model: nn.Module) -> None:
        """Undo :meth:`freeze`, as far as the adapters that are left allow."""
        others = tuple(adapters(model).values())
        trained = {name for adapter in others for name in adapter.plan.trained}
        for name, parameter in base_parameters(model).items():
            flag = canonical(model, name) in trained if others else self._flags.get(name, parameter.requires_grad)
            parameter.requires_grad_(flag)

    def before_forward(self, module: nn.Module, args: Any) -> None:
        """Hook of the root: expand all factors for the forward that starts."""
        if not self.enabled:
            return
        dtype = self._compute_dtype(module)
        if torch.compiler.is_compiling():
            self._current = self.expand(dtype)
        elif torch.is_grad_enabled():
            self._keep(self.expand(dtype), dtype)
            self._current = self._kept[True][0]
        else:
            self._current = self._unchanged(dtype)

    def after_forward(self, module: nn.Module, args: Any, output: Any) -> None:
        """Hook of the root: the forward is over, or has failed. Says once if sites were never reached."""
        self._current = None
        if torch.compiler.is_compiling() or self._unfired is None or not self.enabled:
            return
        silent = [self.plan.sites[index].path for index in sorted(self._unfired)]
        if output is None or len(silent) == 0:
            self._unfired = None if output is not None else self._unfired
            return
        self._unfired = None
        if len(silent) == len(self.plan.sites):
            raise UsageError(
                "no adapted layer took part in the forward: the model reads their weights without calling them; "
                "choose other layers with --target-modules"
            )
        shown = ", ".join(silent[:3]) + (f" and {len(silent) - 3} more" if len(silent) > 3 else "")
        warnings.warn(f"adapted but not called in the first forward: {shown}", stacklevel=2)

    def factors_at(self, index: int, dtype: torch.dtype) -> Factors:
        """The factors that site `index` uses now."""
        if torch.compiler.is_compiling():
            self._unfired = None  # Written and never read here: reading it would guard it, and compile twice.
        elif self._unfired is not None:
            self._unfired.discard(index)
        if self._current is not None:
            return self._current[index]
        # Inside a backward there is a graph task: this is a checkpointed block being recomputed.
        if torch._C._current_graph_task_id() != -1 and True in self._kept:
            return self._kept[True][0][index]
        return self._unchanged(dtype)[index]

    def _unchanged(self, dtype: torch.dtype) -> list[Factors]:
        """The last expansion if the numbers are still what they were then, otherwise a new one."""
        kept = self._kept.get(torch.is_grad_enabled())
        if kept is not None:
            factors, copies, kept_dtype = kept
            same = kept_dtype == dtype and all(
                copy.device == number.device and torch.equal(copy, number)
                for copy, number in zip(copies, self.numbers.values(), strict=True)
            )
            if same:
                return factors
        factors = self.expand(dtype)
        self._keep(factors, dtype)
        return factors

    def _keep(self, factors: list[Factors], dtype: torch.dtype) -> None:
        copies = [number.detach().clone() for number in self.numbers.values()]
        self._kept[torch.is_grad_enabled()] = (factors, copies, dtype)

    def _forget(self) -> None:
        self._current = None
        self._kept = {}

    def _compute_dtype(self, model: nn.Module) -> torch.dtype:
        """The dtype that the sites compute in, so that all factors are cast at once."""
        weight: Any = model.get_submodule(self.plan.sites[0].module).weight
        if torch.is_autocast_enabled(weight.device.type):
            return torch.get_autocast_dtype(weight.device.type)
        return weight.dtype if weight.is_floating_point() else torch.float32

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Adapter:
        """Follow the model to its device, but stay float32 when it is cast: a few kilobytes are not worth rounding."""

        def move(tensor: Tensor) -> Tensor:
            if tensor.is_meta or not tensor.is_floating_point():
                return fn(tensor)
            return tensor.to(fn(tensor.new_empty(0)).device)

        self._forget()
        return super()._apply(move, recurse)

    def __getstate__(self) -> dict[str, Any]:
        # Kept factors are part of an autograd graph and cannot be copied; they are made again when asked for.
        return self.__dict__ | {"_current": None, "_kept": {}}


class SiteAdapter(nn.Module):
    """What stands beside one base module: the hook that adds the adapter's part to its output.

    It holds no numbers; they are the adapter's. The hook is a bound method, not a closure, so that copies of a model
    hook themselves and not the original.
    """

    def __init__(self, adapter: Adapter, index: int) -> None:
        super().__init__()
        # In a tuple, since as a submodule the adapter would be its own descendant.
        self.owner = (adapter,)
        self.index = index
        self.handle: Any = None

    def hook(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        """Forward hook of the base module."""
        adapter = self.owner[0]
        if not adapter.enabled:
            return output
        site, host = adapter.plan.sites[self.index], adapter.plan.stack.host
        assert host is not None
        inputs = args[0] if args else next(iter(kwargs.values()))
        factors = adapter.factors_at(self.index, output.dtype)
        if factors[0].dtype != output.dtype or factors[0].device != output.device:
            factors = tuple(factor.to(output.device, output.dtype) for factor in factors)
        inputs = inputs.to(output.dtype)
        if site.whole:
            return host.forward(site, inputs, output, factors)
        stop = site.start + site.out_features
        part = host.forward(site, inputs, output[..., site.start : stop], factors)
        return output.slice_scatter(part, -1, site.start, stop)


def _child(name: str, site: Site) -> str:
    """Name of a site's child module; a fused projection has one for each slice.

    No adapter's name has a `#`, so none of these clashes with another or with the adapter itself.
    """
    return f"{CHILD_PREFIX}{name}#" + ("" if site.whole else site.path.rsplit("#", 1)[-1])
