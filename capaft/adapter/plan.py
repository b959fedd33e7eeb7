"""Everything that decides an adapter, before a number of it is drawn or a model is changed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from torch import nn

from capaft.config.choices import HEAD_K
from capaft.factors.expansion import parameter_bounds
from capaft.factors.factor import Factor
from capaft.factors.nola import Coefficients
from capaft.factors.rng import MAX_SEED
from capaft.methods.head import HEAD_MODES, HEAD_ROLE, Head
from capaft.methods.host import Host, check_whole
from capaft.methods.stack import Stack
from capaft.model.names import base_parameters, canonical_name
from capaft.model.site import Site
from capaft.model.targets import Targets, path_matcher
from capaft.support.errors import UsageError

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
        rename: pieces of module paths that the sites are named by instead; see `find_weight_sites`.
        head: the head's parameters that are not trained themselves, and their coefficients if they have any.
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
        """Every place where the model is changed, with the host that changes it: the sites, then the head's."""
        stack = ((self.stack.host, site) for site in self.sites if self.stack.host)
        return (*stack, *((self.head, site) for site in self.head.moved))

    def coefficients(self, factor: Factor) -> Coefficients | None:
        """NOLA's numbers for a factor of the stack or of the head, or None where the factor itself is trained."""
        return self.head.coefficients if factor.name.startswith(f"{HEAD_ROLE}:") else self.stack.coefficients(factor)

    def groups(self) -> dict[str, list[tuple[Factor, list[Site]]]]:
        """By role, the kinds of factor in ascending order of their shapes, each with its sites sorted by path.

        This is the order of the numbers in a role's parameter and in the adapter file. The head's parameters, which
        are few and rarely alike, stand in the order of their names.
        """
        found: dict[str, dict[Factor, list[Site]]] = defaultdict(lambda: defaultdict(list))
        for site in self.sites:
            for factor in self.stack.host.factors(site) if self.stack.host else ():
                found[factor.name][factor].append(site)
        assert HEAD_ROLE not in found, "a host's factor cannot be called what the head's coefficients are"
        roles = {
            role: sorted(groups.items(), key=lambda group: (group[0].shape, group[0].fan_in))
            for role, groups in found.items()
        }
        head = [(factor, [site]) for site in self.head.moved for factor in self.head.factors(site)]
        return roles | ({HEAD_ROLE: head} if head else {})

    def bounds(self) -> dict[str, tuple[int, int]]:
        """By role, the fewest and the most numbers that the plan can come to, without drawing anything.

        Roles that are frozen have none and are left out.
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


def make_plan(
    model: nn.Module,
    stack: Stack,
    *,
    targets: str | Targets = "",
    seed: int = 0,
    head: Iterable[str] = (),
    head_mode: str = "full",
    head_k: int = HEAD_K,
    trained: Iterable[str] = (),
    modules_to_save: str = "",
    rename: dict[str, str] | None = None,
) -> Plan:
    """Decide an adapter for a model without drawing or changing anything.

    Args:
        model: the base model.
        stack: the method stack.
        targets: what to adapt; see `Targets`. Nothing leaves it to the method.
        seed: the seed of every random number of the adapter, `0 <= seed < 2**64`.
        head: names of the base parameters that are the head (a new classifier).
        head_mode: `full` trains them as they are. `nola` moves those of more than `head_k` numbers along a seeded
            basis, and `frozen` trains none; what the model holds then must be had again to load the adapter, from the
            checkpoint or by `initialise_head`.
        head_k: coefficients of a parameter of the head under `nola`.
        trained: names of further base parameters that are trained as they are, whatever becomes of the head.
        modules_to_save: modules of which all parameters are trained as they are, as names or `re:<pattern>`.
        rename: `{old: new}` pieces of module paths; see `find_weight_sites`.

    Raises:
        UsageError: no site matches, the seed is out of range, a parameter of `head` does not exist or cannot have
            coefficients, nothing is trained, or the hidden width exceeds the layers it is meant for.
    """
    if not 0 <= seed <= MAX_SEED:
        raise UsageError(f"--seed must be in [0, 2**64), got {seed}")
    targets = targets if isinstance(targets, Targets) else Targets(targets)
    names = {canonical_name(model, name, rename): name for name in base_parameters(model)}
    of_head, as_is = ({canonical_name(model, name, rename) for name in each} for each in (head, trained))
    for name in sorted(of_head | as_is):
        if name not in names:
            raise UsageError(f"the model has no parameter {name} to train; check the head's names")
    if modules_to_save and stack.method != "full":
        as_is |= _of_modules(set(names), modules_to_save)
    own, rest = _head(model, stack, {name: names[name] for name in of_head - as_is}, head_mode, head_k)
    as_is = set(names) if stack.method == "full" else as_is | rest
    if stack.method == "head" and own.parameters and not own.k and not as_is:
        raise UsageError("--head frozen leaves --method head nothing to train; choose another of either")
    decided = Plan(stack, seed, Targets(), (), tuple(sorted(as_is)), rename or {}, own)
    if stack.host is None:
        return decided
    if not targets.modules:
        targets = replace(targets, modules=stack.host.default_targets)
    sites = stack.host.sites(model, targets, rename)
    for site in sites:
        for module in site.modules:
            name = canonical_name(model, f"{module}.{site.parameter}", rename)
            if site.parameter and name in as_is | of_head:
                what = "trained as it is" if name in as_is else "part of the head"
                raise UsageError(f"{module} is both adapted and {what}; leave it out of one of them")
    decided = replace(decided, targets=targets, sites=sites)
    _check_widths(decided)
    return decided


def _head(model: nn.Module, stack: Stack, names: dict[str, str], mode: str, k: int) -> tuple[Head, set[str]]:
    """What of a head has coefficients or stays as it is, and the names of what is trained whole.

    Args:
        model: the base model.
        stack: the method stack, for its basis.
        names: by canonical name, the parameters' names in the model.
        mode: see `plan`.
        k: see `plan`.
    """
    check_whole("head-k", k)
    if mode not in HEAD_MODES:
        raise UsageError(f"--head must be one of {', '.join(HEAD_MODES)}, got {mode}")
    if mode == "full":
        return Head(), set(names)
    if stack.method == "full":
        raise UsageError(f"--head {mode} has no meaning for --method full, which trains every weight; drop one")
    sizes = {name: parameter.numel() for name, parameter in base_parameters(model).items()}
    rest = {name for name, own in names.items() if mode == "nola" and sizes[own] <= k}
    kept = {name: own for name, own in names.items() if name not in rest}
    return Head.of(model, kept, k if mode == "nola" else 0, stack.basis), rest


def _of_modules(names: set[str], modules: str) -> set[str]:
    """The parameters of the modules that a list of names or a regular expression means."""
    found: set[str] = set()
    for word in Targets(modules).words:
        match = path_matcher(word, "modules-to-save")
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
