"""The trainable parameters of one adapter, and the factors made from them.

All sites' factors come from one expansion in a hook before the root's forward, inside the autograd graph, so any
optimizer, DDP, checkpointing and `transformers.Trainer` see ordinary parameters. Factors are expanded:

- once before each forward of the root;
- not again while autograd recomputes a checkpointed block, which reuses the factors of the training forward;
- outside both (a submodule called on its own), and whenever no gradient is needed, only if the parameters have changed
  since; see `KeptFactors`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from capaft.adapter.bystander import Bystander
from capaft.adapter.flow import Factors, Flow
from capaft.adapter.kept_factors import KeptFactors
from capaft.adapter.plan import Plan
from capaft.adapter.substitutes import Substitutes
from capaft.factors.expansion import Expansion
from capaft.factors.nola import Seeded
from capaft.factors.rng import Streams
from capaft.model.labels import Labels
from capaft.model.names import CHILD_PREFIX, WRAPPERS, canonical_name, child_of
from capaft.model.site import Site, is_quantised
from capaft.model.weights import held_tensors
from capaft.support.errors import UsageError, check_type

# A role that is frozen has no parameters.
NO_PARAMETERS = torch.empty(0, dtype=torch.float32, device="cpu")


def carrier(model: nn.Module) -> nn.Module:
    """The module that carries the adapters: a model, or one inside its wrappers.

    Raises:
        UsageError: it is no module of torch.
    """
    check_type("model", model, nn.Module, "a torch module")
    module: nn.Module | None = model
    while module is not None:
        children = dict(module.named_children())
        if any(isinstance(child, Adapter) for child in children.values()):
            return module
        module = next((child for name, child in children.items() if name + "." in WRAPPERS), None)
    return model


def adapters(model: nn.Module) -> dict[str, Adapter]:
    """The adapters on a model, by name, in the order in which they were attached.

    Example:
        >>> adapter = capaft.attach(model, "nola", k=16, rank=2, seed=7)
        >>> list(capaft.adapters(model))
        ['default']
    """
    return {
        child.removeprefix(CHILD_PREFIX): module
        for child, module in carrier(model).named_children()
        if isinstance(module, Adapter)
    }


class RoleMap(NamedTuple):
    """One map from a role's parameters to the factors of some places.

    Attributes:
        role: the role.
        expansion: the map.
        span: the part of the role's parameters, flat, that it takes.
        positions: its places, by their positions in `Plan.placed`.
    """

    role: str
    expansion: Expansion
    span: slice
    positions: list[int]


class Adapter(Bystander):
    """The trainable parameters of one adapter, and the maps from them to every site's factors.

    Attributes:
        plan: the decisions that the adapter was made from.
        role_parameters: the trainable parameters, one float32 tensor per role: `(S, k)` for NOLA's coefficients at S
            sites, `(1, k)` where all sites share them, flat for dense factors and for roles that mix both; in the order
            of `Plan.groups`. The role `head` holds the coefficients that move a model's head.
        dropout: share of the adapter's input that is zeroed while the model trains.
        enabled: True while the adapter takes part in the model's forward.
        substitutes: the tensors that stand in place of the model's own while the adapter is active: what it trains
            directly, and a head that it starts from if that is not the model's.
        labels: labels of the adapter's head while it is inactive, and of the model's own while it is active; None if
            it has no head, or the model no labels.
        task: the task in the file that it was loaded from.
    """

    def __init__(self, plan: Plan, dropout: float = 0.0) -> None:
        super().__init__()
        self.plan = plan
        self.dropout = dropout
        self.enabled = True
        self.labels: Labels | None = None
        self.task: Any = None
        self.role_parameters = nn.ParameterDict()
        # The map of each group, by role, in the order of the plan.
        self.expansions = nn.ModuleDict()
        # The path of each child beside a base module.
        self.places: list[tuple[str, ...]] = []
        # For each group of a role, the parameters that its map takes, and the positions of its sites.
        self._spans: dict[str, list[tuple[slice, list[int]]]] = {}
        position = {site: index for index, (_, site) in enumerate(plan.placed)}
        for role, groups in plan.groups().items():
            maps, starts, spans, end = nn.ModuleList(), [], [], 0
            shared: slice | None = None
            for factor, sites in groups:
                streams = [Streams(plan.seed, site.path, factor.name) for site in sites]
                coefficients = plan.coefficients(factor)
                expansion, start = Expansion.build(factor, streams, coefficients, plan.stack.copies_of(factor))
                maps.append(expansion)
                is_shared = coefficients is not None and coefficients.scope == "model"
                span = shared if is_shared and shared else slice(end, end + start.numel())
                if not (is_shared and shared):
                    starts.append(start)
                    end = span.stop
                shared = span if is_shared else shared
                spans.append((span, [position[site] for site in sites]))
            sources = [expansion.source for expansion in maps]
            bases = [source.basis for source in sources if isinstance(source, Seeded) and source.shared]
            for basis in bases:
                basis.settle(bases)
            self.expansions[role] = maps
            self._spans[role] = spans
            if end:
                alike = len({start.shape[1:] for start in starts}) == 1
                joined = torch.cat(starts if alike else [start.flatten() for start in starts])
                self.role_parameters[role] = nn.Parameter(joined)
        self.substitutes = Substitutes({})
        # Flags of the adapter's own parameters before it became inactive; see `hold`.
        self.held: dict[str, bool] | None = None
        self.flow = Flow()
        self.kept = KeptFactors()
        self._unfired: set[int] | None = set(range(len(plan.placed)))

    def __repr__(self) -> str:
        # One line; the default would list every expansion.
        plan, host, k, copies = self.plan, self.plan.stack.host, self.plan.stack.k, self.plan.stack.copies
        count = sum(parameter.numel() for parameter in self.role_parameters.values())
        parts = [
            plan.stack.method,
            f"{host.size.replace('_', ' ')} {getattr(host, host.size)}" if host and host.size else "",
            f"k {','.join(map(str, k))}" if k else "",
            f"{copies.copies} copies" if copies else "",
            f"{len(plan.sites)} site{'s' * (len(plan.sites) != 1)}" if host else "",
            f"{count:,} trainable parameters" if count else "",
            f"{len(plan.trained)} trainable tensor{'s' * (len(plan.trained) != 1)} of the model"
            if plan.trained
            else "",
            f"seed {plan.seed}",
        ]
        return f"Adapter({', '.join(filter(None, parts))})"

    def expand(self, dtype: torch.dtype = torch.float32) -> list[Factors]:
        """The factors of every place, in the order of `Plan.placed`, differentiable in `role_parameters`."""
        factors: list[list[Tensor]] = [[] for _ in self.plan.placed]
        for role, expansion, span, positions in self.maps():
            flat = self.role_parameters[role].view(-1) if role in self.role_parameters else NO_PARAMETERS
            wide = expansion(flat[span].view(expansion.parameters_shape))
            # A factor that all sites share is cast once and stays one tensor.
            wide = wide[:1].to(dtype).expand(wide.shape) if wide.stride(0) == 0 else wide.to(dtype)
            for position, factor in zip(positions, wide.unbind(0), strict=True):
                factors[position].append(factor)
        return [tuple(of_place) for of_place in factors]

    @torch.no_grad()
    def factors_of_place(self, index: int) -> Factors:
        """The factors of one place, float32, without gradient and without those of the other places in memory."""
        factors: list[Tensor] = []
        for role, expansion, span, positions in self.maps():
            if index in positions:
                flat = self.role_parameters[role].view(-1) if role in self.role_parameters else NO_PARAMETERS
                parameters = flat[span].view(expansion.parameters_shape)
                factors.append(expansion.expand_site(parameters, positions.index(index)))
        return tuple(factors)

    def maps(self) -> Iterator[RoleMap]:
        """Every map, in the order in which a place gets its factors."""
        for role, spans in self._spans.items():
            maps = self.expansions[role]
            assert isinstance(maps, nn.ModuleList)
            for expansion, (span, positions) in zip(maps, spans, strict=True):
                assert isinstance(expansion, Expansion)
                yield RoleMap(role, expansion, span, positions)

    def factors_of_sites(self) -> Iterator[tuple[Site, Factors]]:
        """Each site with its float32 factors, without gradient; nothing for `head` and `full`."""
        with torch.no_grad():
            yield from zip(self.plan.sites, self.expand(), strict=False)

    def trained(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Every trainable parameter by its name in the adapter file: a role, or `head:<parameter>`.

        They are the adapter's own, whether or not it is active.
        """
        direct: dict[str, nn.Parameter] = {}
        if self.plan.trained:
            direct = self.substitutes.tensors(model)
        if not set(self.plan.trained) <= direct.keys():  # Trained in place.
            direct = {canonical_name(model, n, self.plan.rename): p for n, p in model.named_parameters()}
        return dict(self.role_parameters) | {f"head:{name}": direct[name] for name in self.plan.trained}

    def trains_in_place(self, model: nn.Module, name: str) -> bool:
        """True if the adapter trains this tensor of the model itself; `name` is its name in the model."""
        name = canonical_name(model, name, self.plan.rename)
        return name in self.plan.trained and name not in self.substitutes.names

    def enter(self, model: nn.Module) -> None:
        """Take part in the model's forward, with the head and the labels that belong to the adapter."""
        self.substitutes.enter(model)
        self._exchange_labels(model)
        # Last: who puts a tensor into a module reads it, through the adapters that are active.
        self.enabled = True

    def leave(self, model: nn.Module) -> None:
        """Leave the model as it was before `enter`.

        Raises:
            UsageError: the model has lost a parameter that the adapter stands in for; nothing was changed.
        """
        self.enabled = False
        try:
            self.substitutes.leave(model)
        except UsageError:
            self.enabled = True
            raise
        self._exchange_labels(model)

    def give(self, model: nn.Module) -> None:
        """Make the head and the labels of an inactive adapter the model's own for good."""
        self.substitutes.give(model)
        if self.labels is not None:
            self.labels.install(model)

    def own_labels(self, model: nn.Module) -> Labels | None:
        """The labels of the adapter's head, whether or not it is active; None if it has no head."""
        return Labels.of(model) if self.enabled and self.labels else self.labels

    def _exchange_labels(self, model: nn.Module) -> None:
        if self.labels is not None:
            current = Labels.of(model)
            self.labels.install(model)
            self.labels = current

    def warn_of_missing(self, model: nn.Module, state: dict[str, Any], prefix: str, *details: Any) -> None:
        """Warn if a state dictionary that is loaded has nothing of this adapter; a hook of the model."""
        (child,) = (name for name, module in model.named_children() if module is self)
        if state and not any(key.startswith(f"{prefix}{child}.") for key in state):
            warnings.warn(
                f"the loaded state has nothing of the adapter {child.removeprefix(CHILD_PREFIX)}, which stays as it "
                "is; an adapter's own file is loaded with capaft.load",
                stacklevel=2,
            )

    def check_places(self, model: nn.Module) -> None:
        """Check that every adapted module is where it was.

        Raises:
            UsageError: one has been replaced, or another library has wrapped it.
        """
        for pieces in self.places:
            module: nn.Module | None = model
            for piece in pieces:
                module = child_of(module, piece) if module is not None else None
            if module is None:
                raise UsageError(
                    f"{'.'.join(pieces[:-1]) or 'the model'} has been replaced or wrapped since the adapter was "
                    "attached; put the layer back, or attach the adapter to a fresh model"
                )

    def before_forward(self, module: nn.Module, args: Any) -> None:
        """Expand all factors for the forward that starts; a root hook."""
        self.flow.enter()
        if not self.enabled:
            return
        if not torch.compiler.is_compiling():
            self.check_places(module)
        dtype = self._compute_dtype(module)
        if torch.compiler.is_compiling():
            self.flow.factors = self.expand(dtype)
        elif torch.is_grad_enabled():
            self.flow.factors = self._expand_and_keep(dtype)
        else:
            self.flow.factors = self._unchanged(dtype)

    def after_forward(self, module: nn.Module, args: Any, output: Any) -> None:
        """Drop the factors after a forward, failed or not; warn once of sites that were not called; a root hook."""
        self.flow.leave()
        unfired = self._unfired
        if torch.compiler.is_compiling() or unfired is None or not self.enabled:
            return
        silent = [self.plan.placed[index][1].path for index in sorted(unfired.copy())]
        if output is None or not silent:
            self._unfired = None if output is not None else unfired
            return
        none_fired = bool(self.plan.sites) and unfired.issuperset(range(len(self.plan.sites)))
        self._unfired = None
        if none_fired:
            raise UsageError("the forward called none of the adapted layers; choose other target modules")
        shown = ", ".join(silent[:3]) + (f" and {len(silent) - 3} more" if len(silent) > 3 else "")
        warnings.warn(f"adapted but not called in the first forward: {shown}", stacklevel=2)

    def factors_at(self, index: int, dtype: torch.dtype) -> Factors:
        """The current factors of place `index`."""
        if torch.compiler.is_compiling():
            self._unfired = None  # Written but never read here: reading it would add a guard, and compile twice.
        elif (unfired := self._unfired) is not None:
            unfired.discard(index)
        if (factors := self.flow.factors) is not None:
            return factors[index]
        # Inside a backward there is a graph task: this is a checkpointed block being recomputed.
        if torch._C._current_graph_task_id() != -1 and (kept := self.kept.with_gradients()):
            return kept[index]
        return self._unchanged(dtype)[index]

    def _unchanged(self, dtype: torch.dtype) -> list[Factors]:
        """The last expansion if the parameters have not changed since, otherwise a new one."""
        return self.kept.unchanged(self.role_parameters.values(), dtype) or self._expand_and_keep(dtype)

    def _expand_and_keep(self, dtype: torch.dtype) -> list[Factors]:
        return self.kept.keep(self.expand(dtype), self.role_parameters.values(), dtype)

    def _compute_dtype(self, model: nn.Module) -> torch.dtype:
        """The dtype that the sites compute in, so that all factors can be cast at once."""
        _, site = self.plan.placed[0]
        place = model.get_submodule(site.module)
        held = [site.stored(model)] if site.parameter else held_tensors(place)
        values = next((tensor for tensor in held if not is_quantised(tensor)), None)
        trained = next(iter(self.role_parameters.values()))
        device = trained.device if values is None or values.is_meta else values.device
        if torch.is_autocast_enabled(device.type):
            return torch.get_autocast_dtype(device.type)
        return torch.float32 if values is None else values.dtype

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Adapter:
        """Follow the model to its device, but stay float32 when it is cast: rounding a few kilobytes saves nothing."""
        # A head is cast with the model that it stands in.
        heads = list(self.substitutes.parameters())
        cast = [tensor for head in heads for tensor in (head, head.grad) if tensor is not None]

        def move(tensor: Tensor) -> Tensor:
            if tensor.is_meta or not tensor.is_floating_point() or any(tensor is head for head in cast):
                return fn(tensor)
            return tensor.to(fn(tensor.new_empty(0)).device)

        self.kept = KeptFactors()
        self.substitutes.move(fn)
        return super()._apply(move, recurse)
