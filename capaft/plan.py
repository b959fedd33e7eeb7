"""Everything that decides an adapter, before a number of it is drawn or a model is changed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from capaft.errors import UsageError
from capaft.factor import Factor, numbers_bounds
from capaft.methods.stack import Stack
from capaft.rng import MAX_SEED
from capaft.sites import Site, canonical, find

# An adapter stands in its model, and beside its modules, as a child of this name.
CHILD_PREFIX = "capaft_"


@dataclass(frozen=True)
class Plan:
    """Everything that decides an adapter, before a number of it is drawn.

    Attributes:
        stack: the method stack and its numbers.
        seed: the user's seed.
        targets: the pattern that the sites were found by.
        sites: the sites, sorted by path.
        trained: canonical names of base parameters that are trained themselves: a new head, or all for `full`.
    """

    stack: Stack
    seed: int
    targets: str
    sites: tuple[Site, ...]
    trained: tuple[str, ...]

    def groups(self) -> dict[str, list[tuple[Factor, list[Site]]]]:
        """By role, the factor shapes in ascending order, each with its sites sorted by path.

        This is the order of the numbers in a role's parameter and in the adapter file.
        """
        found: dict[str, dict[tuple[int, ...], tuple[Factor, list[Site]]]] = defaultdict(dict)
        for site in self.sites:
            for factor in self.stack.host.factors(site) if self.stack.host else ():
                found[factor.name].setdefault(factor.shape, (factor, []))[1].append(site)
        return {role: [groups[shape] for shape in sorted(groups)] for role, groups in found.items()}

    def bounds(self) -> dict[str, tuple[int, int]]:
        """By role, the fewest and the most numbers that the plan can come to, without drawing anything."""
        totals: dict[str, tuple[int, int]] = {}
        for role, groups in self.groups().items():
            each = [
                (len(sites), numbers_bounds(factor, self.stack.coefficients(factor), self.stack.copies))
                for factor, sites in groups
            ]
            totals[role] = (sum(s * low for s, (low, _) in each), sum(s * high for s, (_, high) in each))
        return totals


def plan(
    model: nn.Module,
    stack: Stack,
    *,
    targets: str = "qv",
    seed: int = 0,
    head: Iterable[str] = (),
    rename: dict[str, str] | None = None,
) -> Plan:
    """Decide an adapter for a model without drawing or changing anything.

    Args:
        model: the base model.
        stack: the method stack.
        targets: which layers are sites; see :func:`capaft.sites.find`.
        seed: the seed of every random number of the adapter, `0 <= seed < 2**64`.
        head: names of base parameters that are trained as they are (a new classifier).
        rename: `{old: new}` pieces of module paths; see :func:`capaft.sites.find`.

    Raises:
        UsageError: no site matches, the seed is out of range, a parameter of `head` does not exist, or the hidden
            width exceeds the layers it is meant for.
    """
    if not 0 <= seed <= MAX_SEED:
        raise UsageError(f"--seed must be in [0, 2**64), got {seed}")
    names = {canonical(model, name) for name in base_parameters(model)}
    trained = tuple(sorted(names if stack.method == "full" else {canonical(model, name) for name in head}))
    for name in trained:
        if name not in names:
            raise UsageError(f"the model has no parameter {name} to train; check the head's names")
    sites = find(model, targets, rename) if stack.host else ()
    decided = Plan(stack, seed, targets, sites, trained)
    _check_widths(decided)
    return decided


def _check_widths(decided: Plan) -> None:
    """Refuse a bottleneck wider than its layer, and masks that keep nothing."""
    copies = decided.stack.copies
    for site in decided.sites:
        widest = max(site.in_features, site.out_features)
        for factor in decided.stack.host.factors(site) if decided.stack.host else ():
            width = factor.shape[factor.hidden_axis] * (copies.copies if copies else 1)
            if width > widest:
                raise UsageError(
                    f"a hidden width of {width} (rank times copies) exceeds the layer {site.path}, {widest} wide; "
                    "lower --rank or --copies, or narrow --target-modules"
                )
            if copies and copies.masks == "random" and copies.kept(factor.size) == 0:
                raise UsageError(f"--density {copies.density} keeps none of a factor's {factor.size} numbers")


def base_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The model's own parameters by name, without those of its adapters."""
    return {name: p for name, p in model.named_parameters() if not name.startswith(CHILD_PREFIX)}
