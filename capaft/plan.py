"""Everything that decides an adapter, before a number of it is drawn or a model is changed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from torch import nn

from capaft.errors import UsageError
from capaft.factor import Factor, numbers_bounds
from capaft.methods.host import Host
from capaft.methods.stack import Stack
from capaft.rng import MAX_SEED
from capaft.sites import Site, canonical, renamed
from capaft.targets import Targets, matcher

# An adapter stands in its model, and beside its modules, as a child of this name.
CHILD_PREFIX = "capaft_"
# A file of few coefficients must not ask for factors of any size: beyond this, a hidden width is bound to the layer's.
MAX_HIDDEN = 4096


@dataclass(frozen=True)
class Plan:
    """Everything that decides an adapter, before a number of it is drawn.

    Attributes:
        stack: the method stack and its numbers.
        seed: the user's seed.
        targets: what the sites were found by.
        sites: the sites, sorted by path.
        trained: canonical names of base parameters that are trained themselves: a new head, or all for `full`.
        rename: pieces of module paths that the sites are named by instead; see :func:`capaft.weight_sites.find`.
    """

    stack: Stack
    seed: int
    targets: Targets
    sites: tuple[Site, ...]
    trained: tuple[str, ...]
    rename: dict[str, str] = field(default_factory=dict)

    def groups(self) -> dict[str, list[tuple[Factor, list[Site]]]]:
        """By role, the kinds of factor in ascending order of their shapes, each with its sites sorted by path.

        This is the order of the numbers in a role's parameter and in the adapter file.
        """
        found: dict[str, dict[Factor, list[Site]]] = defaultdict(lambda: defaultdict(list))
        for site in self.sites:
            for factor in self.stack.host.factors(site) if self.stack.host else ():
                found[factor.name][factor].append(site)
        return {
            role: sorted(groups.items(), key=lambda group: (group[0].shape, group[0].fan_in))
            for role, groups in found.items()
        }

    def bounds(self) -> dict[str, tuple[int, int]]:
        """By role, the fewest and the most numbers that the plan can come to, without drawing anything.

        Roles that are frozen have none and are left out.
        """
        totals: dict[str, tuple[int, int]] = {}
        for role, groups in self.groups().items():
            low = high = shared = 0
            for factor, sites in groups:
                coefficients, copies = self.stack.coefficients(factor), self.stack.copies_of(factor)
                least, most = numbers_bounds(factor, coefficients, copies, len(sites))
                if coefficients and coefficients.scope == "model":
                    shared = least
                else:
                    low, high = low + least, high + most
            if high or shared:
                totals[role] = (low + shared, high + shared)
        return totals


def plan(
    model: nn.Module,
    stack: Stack,
    *,
    targets: str | Targets = "",
    seed: int = 0,
    head: Iterable[str] = (),
    modules_to_save: str = "",
    rename: dict[str, str] | None = None,
) -> Plan:
    """Decide an adapter for a model without drawing or changing anything.

    Args:
        model: the base model.
        stack: the method stack.
        targets: what to adapt; see :class:`capaft.targets.Targets`. Nothing leaves it to the method.
        seed: the seed of every random number of the adapter, `0 <= seed < 2**64`.
        head: names of base parameters that are trained as they are (a new classifier).
        modules_to_save: modules of which all parameters are trained as they are, as names or `re:<pattern>`.
        rename: `{old: new}` pieces of module paths; see :func:`capaft.weight_sites.find`.

    Raises:
        UsageError: no site matches, the seed is out of range, a parameter of `head` does not exist, or the hidden
            width exceeds the layers it is meant for.
    """
    if not 0 <= seed <= MAX_SEED:
        raise UsageError(f"--seed must be in [0, 2**64), got {seed}")
    targets = targets if isinstance(targets, Targets) else Targets(targets)
    names = {own_name(model, name, rename) for name in base_parameters(model)}
    trained = tuple(sorted(names if stack.method == "full" else {own_name(model, name, rename) for name in head}))
    for name in trained:
        if name not in names:
            raise UsageError(f"the model has no parameter {name} to train; check the head's names")
    if modules_to_save and stack.method != "full":
        trained = tuple(sorted({*trained, *_of_modules(names, modules_to_save)}))
    if stack.host is None:
        return Plan(stack, seed, Targets(), (), trained, rename or {})
    if not targets.modules:
        targets = replace(targets, modules=stack.host.default_targets)
    sites = stack.host.sites(model, targets, rename)
    for site in sites:
        for module in site.modules:
            name = own_name(model, f"{module}.{site.parameter}", rename)
            if site.parameter and name in trained:
                raise UsageError(f"{module} is both adapted and trained as it is; leave it out of one of them")
    decided = Plan(stack, seed, targets, sites, trained, rename or {})
    _check_widths(decided)
    return decided


def _of_modules(names: set[str], modules: str) -> set[str]:
    """The parameters of the modules that a list of names or a regular expression means."""
    found: set[str] = set()
    for word in Targets(modules).words:
        match = matcher(word, "modules-to-save")
        own = {name for name in names if match(name.rpartition(".")[0]) or f".{word}." in f".{name}"}
        if not own:
            raise UsageError(f"--modules-to-save {word}: the model has no module of that name with parameters")
        found |= own
    return found


def _check_widths(decided: Plan) -> None:
    """Refuse a bottleneck wider than its layer, and masks that keep nothing."""
    stack = decided.stack
    for site in decided.sites:
        assert stack.host is not None
        limit = hidden_limit(site, stack.host)
        for factor in stack.host.factors(site):
            copies = stack.copies_of(factor)
            if factor.hidden_axis is None:
                continue
            width = factor.shape[factor.hidden_axis] * (copies.copies if copies else 1)
            if width > limit:
                raise UsageError(
                    f"a hidden width of {width} (rank times copies) exceeds the layer {site.path}, which has room for "
                    f"{limit}; lower --{stack.host.size.replace('_', '-')} or --copies, or narrow --target-modules"
                )
            if copies and copies.masks == "random" and copies.kept(factor.size) == 0:
                raise UsageError(
                    f"--density {copies.density} keeps none of the {factor.size} numbers of {factor.name} at "
                    f"{site.path}; raise it, or make the method larger"
                )


def hidden_limit(site: Site, host: Host) -> int:
    """The widest that a host may make itself at a site, copies counted.

    A trained update of a weight needs no more than the weight's own width. What is no such update may be wider, but a
    stranger's file must not ask for any amount of memory.
    """
    widest = max(site.in_features, site.out_features)
    trained = any(len(f.shape) > 1 and f.hidden_axis is not None and not f.frozen for f in host.factors(site))
    return widest if site.parameter and trained else max(MAX_HIDDEN, 4 * widest)


def own_name(model: nn.Module, name: str, rename: dict[str, str] | None) -> str:
    """The name of a parameter as an adapter file has it: canonical, and the old one where modules were renamed."""
    return renamed(canonical(model, name), rename)


def base_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The model's own parameters by name, without those of its adapters."""
    return {name: p for name, p in model.named_parameters() if not name.startswith(CHILD_PREFIX)}
