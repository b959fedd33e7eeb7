"""Plan an adapter: every decision about it, before anything is drawn or a model is changed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from capaft.adapter.bounds import check_bounds
from capaft.config.choices import HEAD_K, HeadMode
from capaft.factors.expansion import parameter_bounds
from capaft.factors.factor import Factor
from capaft.factors.nola import Coefficients
from capaft.factors.rng import MAX_SEED
from capaft.methods.head import HEAD_MODES, HEAD_ROLE, Head
from capaft.methods.host import Host, check_factors, check_whole
from capaft.methods.stack import Stack
from capaft.model.modalities import has_towers, reads_text
from capaft.model.names import base_parameters, canonical_name, without_wrappers
from capaft.model.other_adapters import refuse_other_adapters
from capaft.model.quantised import quantised_layers
from capaft.model.site import Site
from capaft.model.targets import TARGET_PRESETS, Targets, path_matcher, shared_pattern_time
from capaft.support.errors import UsageError


@dataclass(frozen=True)
class Plan:
    """Every decision about an adapter, before anything of it is drawn.

    Attributes:
        stack: the method stack with its options.
        seed: the user's seed.
        targets: the choice of layers that the sites were found by.
        sites: the sites, sorted by path.
        trained: canonical names of base parameters that are trained directly: a new head, or all for `full`.
        rename: `{old: new}` pieces of module paths; see `find_weight_sites`.
        head: the head's parameters that are not trained directly, with their coefficients if they have any.
    """

    stack: Stack
    seed: int
    targets: Targets
    sites: tuple[Site, ...]
    trained: tuple[str, ...]
    rename: dict[str, str] = field(default_factory=dict)
    head: Head = field(default_factory=Head)

    @property
    def placed(self) -> tuple[tuple[Host, Site], ...]:
        """Every place where the model is changed, with the host that changes it: the sites, then those of the head."""
        sites = ((self.stack.host, site) for site in self.sites if self.stack.host)
        return (*sites, *((self.head, site) for site in self.head.moved))

    def coefficients(self, factor: Factor) -> Coefficients | None:
        """NOLA's coefficients for a factor of the stack or of the head, or None if the factor is trained directly."""
        return self.head.coefficients if factor.name.startswith(f"{HEAD_ROLE}:") else self.stack.coefficients(factor)

    def groups(self) -> dict[str, list[tuple[Factor, list[Site]]]]:
        """By role, the kinds of factor in ascending order of their shapes, each with its sites sorted by path.

        This is the order within a role's parameter, in memory and in the adapter file. The head's parameters, which
        are few and rarely alike, follow in the order of their names.
        """
        by_role: dict[str, dict[Factor, list[Site]]] = defaultdict(lambda: defaultdict(list))
        for site in self.sites:
            for factor in self.stack.host.factors(site) if self.stack.host else ():
                by_role[factor.name][factor].append(site)
        roles = {
            role: sorted(groups.items(), key=lambda group: (group[0].shape, group[0].fan_in))
            for role, groups in by_role.items()
        }
        head = [(factor, [site]) for site in self.head.moved for factor in self.head.factors(site)]
        return roles | ({HEAD_ROLE: head} if head else {})

    def bounds(self) -> dict[str, tuple[int, int]]:
        """By role, the fewest and the most trainable parameters that the plan can have, without drawing anything.

        Frozen roles have none and are left out.
        """
        totals: dict[str, tuple[int, int]] = {}
        for role, groups in self.groups().items():
            low = high = shared = 0
            for factor, sites in groups:
                coefficients, copies = self.coefficients(factor), self.stack.copies_of(factor)
                least, most = parameter_bounds(factor, coefficients, copies, len(sites))
                if coefficients and coefficients.scope == "model":
                    shared = least
                else:
                    low, high = low + least, high + most
            if high or shared:
                totals[role] = (low + shared, high + shared)
        return totals


@dataclass(frozen=True)
class Placement:
    """The choices of where an adapter goes and what is trained beside it; the stack says what it is.

    Attributes:
        targets: the layers to adapt; empty for the method's own choice.
        seed: the seed of every random number of the adapter, `0 <= seed < 2**64`.
        head: names of the base parameters that are the head (a new classifier).
        head_mode: `full` trains them directly. `nola` moves those of more than `head_k` entries along a seeded basis,
            and `frozen` trains none; loading the adapter then needs the same values in the model again, from the
            checkpoint or from `initialise_head`.
        head_k: coefficients of a parameter of the head under `nola`.
        trained: names of further base parameters that are trained directly, whatever happens to the head.
        modules_to_save: modules whose parameters are all trained directly, as names or `re:<pattern>`.
        rename: `{old: new}` pieces of module paths; see `find_weight_sites`.
        shapes: shapes of parameters of the head that are not the model's, by canonical name: of other labels.
    """

    targets: Targets = field(default_factory=Targets)
    seed: int = 0
    head: Collection[str] = ()
    head_mode: HeadMode = "full"
    head_k: int = HEAD_K
    trained: Collection[str] = ()
    modules_to_save: str = ""
    rename: dict[str, str] | None = None
    shapes: Mapping[str, torch.Size] = field(default_factory=dict)


DEFAULT_PLACEMENT = Placement()


@shared_pattern_time()
def make_plan(model: nn.Module, stack: Stack, placement: Placement = DEFAULT_PLACEMENT) -> Plan:
    """Plan an adapter for a model without drawing or changing anything.

    Raises:
        UsageError: no site matches, the seed is out of range, a parameter of the head does not exist or cannot have
            coefficients, nothing is trained, the adapter is too large for its layers or the model (see `check_bounds`),
            or the model has another library's adapter.
    """
    refuse_other_adapters(model)
    seed, rename, targets = placement.seed, placement.rename, placement.targets
    if not isinstance(seed, int) or not 0 <= seed <= MAX_SEED:
        raise UsageError(f"--seed must be in [0, 2**64), got {seed!r}")
    names = {canonical_name(model, name, rename): name for name in base_parameters(model)}
    of_head = {canonical_name(model, name, rename) for name in placement.head}
    direct = {canonical_name(model, name, rename) for name in placement.trained}
    for name in sorted(of_head | direct):
        if name not in names:
            raise UsageError(f"the model has no parameter {name} to train; check the head's names")
    if placement.modules_to_save and stack.method != "full":
        direct |= _parameters_of(set(names), placement.modules_to_save)
    head = {name: names[name] for name in of_head - direct}
    moved_head, direct_head = _head(model, stack, head, placement)
    direct = set(names) if stack.method == "full" else direct | direct_head
    _check_trainable(model, {names[name] for name in direct}, whole=stack.method == "full")
    if stack.method == "head" and moved_head.parameters and not moved_head.k and not direct:
        raise UsageError("--head frozen leaves --method head nothing to train; change one of them")
    plan = Plan(stack, seed, Targets(), (), tuple(sorted(direct)), rename or {}, moved_head)
    if stack.host is None:
        check_bounds(plan, model)
        return plan
    if not targets.modules:
        targets = replace(targets, modules=stack.host.default_targets)
    sites = _in_text_path(model, stack.host.sites(model, targets, rename), targets)
    for site in sites:
        for module in site.modules:
            name = canonical_name(model, f"{module}.{site.parameter}", rename)
            if site.parameter and name in direct | of_head:
                other = "trained directly" if name in direct else "part of the head"
                raise UsageError(f"{module} is both adapted and {other}; leave it out of one of them")
        check_factors(stack.host, site)
    plan = replace(plan, targets=targets, sites=sites)
    check_bounds(plan, model)
    return plan


def _in_text_path(model: nn.Module, sites: tuple[Site, ...], targets: Targets) -> tuple[Site, ...]:
    """The sites that read text, of a model with towers of other modalities, whose layers have to be named.

    Raises:
        UsageError: there are none.
    """
    if not has_towers(model) or any(word not in TARGET_PRESETS for word in targets.words):
        return sites
    is_text = reads_text(model)
    reading = tuple(site for site in sites if is_text(without_wrappers(site.module)))
    if not reading:
        raise UsageError(
            "the part of the model that reads text has nothing to adapt by this choice; name layers of other parts "
            "with --target-modules"
        )
    return reading


def _head(model: nn.Module, stack: Stack, names: dict[str, str], placement: Placement) -> tuple[Head, set[str]]:
    """The part of a head that has coefficients or stays frozen, and the names of the part that is trained directly.

    Args:
        model: the base model.
        stack: the method stack, for its basis.
        names: by canonical name, the parameters' names in the model.
        placement: the mode and the coefficients.
    """
    mode, k = placement.head_mode, placement.head_k
    check_whole("head-k", k)
    if mode not in HEAD_MODES:
        raise UsageError(f"--head must be one of {', '.join(HEAD_MODES)}, got {mode}")
    if mode == "full":
        return Head(), set(names)
    if stack.method == "full":
        raise UsageError(f"--head {mode} cannot be used with --method full, which trains every weight; drop one")
    base = base_parameters(model)
    shapes = {name: placement.shapes.get(name, base[full_name].shape) for name, full_name in names.items()}
    small = {name for name, shape in shapes.items() if mode == "nola" and shape.numel() <= k}
    large = {name: full_name for name, full_name in names.items() if name not in small}
    return Head.of(model, large, shapes, k if mode == "nola" else 0, stack.basis), small


def _check_trainable(model: nn.Module, names: set[str], whole: bool) -> None:
    """Refuse to train codes, or the scales beside them.

    Args:
        model: the base model.
        names: of the parameters to train, in the model.
        whole: all of the model is to be trained, so what is no parameter counts as well.

    Raises:
        UsageError: one of them belongs to a quantised layer.
    """
    for path in quantised_layers(model):
        if whole or any(name.rpartition(".")[0] == path for name in names):
            advice = "choose a method such as lora" if whole else "leave it out"
            raise UsageError(f"{path} is quantised and cannot be trained directly; {advice}, or load it unquantised")


def _parameters_of(names: set[str], modules: str) -> set[str]:
    """Names of the parameters of the modules that a list of names or a regular expression matches."""
    parameters: set[str] = set()
    for word in Targets(modules).words:
        match = path_matcher(word, "modules-to-save")
        matching = {name for name in names if match(name.rpartition(".")[0]) or f".{word}." in f".{name}"}
        if not matching:
            raise UsageError(f"--modules-to-save {word}: the model has no module of that name with parameters")
        parameters |= matching
    return parameters
