"""Limits of an adapter's size, checked before anything of it is drawn: a few bytes must not ask for any amount of work.

NOLA's coefficients, CapaBoost's copies and VeRA's frozen pair stand for far more entries than they store, so a
stranger's file, or a slip of a user, could ask for more memory and time than the model itself.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import islice
from typing import TYPE_CHECKING

from torch import Tensor, nn

from capaft.factors.expansion import entries_made, words_used
from capaft.methods.host import Host
from capaft.methods.stack import Stack
from capaft.model.names import base_modules
from capaft.model.site import Site
from capaft.support.counting import counted
from capaft.support.errors import UsageError

if TYPE_CHECKING:
    from capaft.adapter.plan import Plan

# A hidden width that anything but a trained update of a weight may have at a layer of any size.
MAX_HIDDEN = 4096
# Coefficients for each entry of a factor. NOLA's own ViT runs have 1,024 for 768 entries.
MAX_COEFFICIENTS = 4
# Random words drawn, and entries made from them, for each parameter of the base model; and the least that is allowed on
# any model. The heaviest use that makes sense, 1,024 uniform vectors for every linear layer of RoBERTa, draws 2.7.
MAX_WORDS, LEAST_WORDS = 4, 2**26
MAX_ENTRIES, LEAST_ENTRIES = 1, 2**23
# Names that a message lists.
_NAMED = 5


def check_bounds(plan: Plan, model: nn.Module) -> None:
    """Refuse a plan whose factors are larger than their layers, or take more work than the model itself.

    Raises:
        UsageError: a rank, a hidden width, a number of coefficients or the adapter as a whole is too large, or masks
            keep nothing.
    """
    if plan.stack.host:
        _check_ranks(plan)
        _check_widths(plan)
    _check_coefficients(plan)
    _check_work(plan, sum(tensor.numel() for tensor in _tensors(model)))


def largest_size(host: Host, site: Site, copies: int) -> int:
    """The largest size (rank, bottleneck, prefix length) that a host may have at a site.

    A trained update of a weight needs no rank beyond the weight's smaller side, nor a hidden width beyond the larger.
    Anything else may be wider.
    """
    small, large = sorted((site.in_features, site.out_features))
    return min(small, large // copies) if _is_update(host, site) else max(MAX_HIDDEN, 4 * large) // copies


def most_coefficients(stack: Stack, entries: int) -> int:
    """The most coefficients that a factor of so many entries may have; a group of one site's own is never empty."""
    return entries * (1 if stack.basis == "group" and stack.scope == "site" else MAX_COEFFICIENTS)


def _is_update(host: Host, site: Site) -> bool:
    """True if a host trains a product of factors that is added to a weight."""
    factors = host.factors(site)
    return bool(site.parameter) and any(
        len(f.shape) > 1 and f.hidden_axis is not None and not f.frozen for f in factors
    )


def _check_ranks(plan: Plan) -> None:
    """Refuse ranks beyond the smaller side of a layer, all such layers in one message."""
    host = plan.stack.host
    assert host is not None
    narrow: dict[str, Site] = {}
    for site in plan.sites:
        if _is_update(host, site) and _rank(host, site) > min(site.in_features, site.out_features):
            narrow[site.path] = site
    if not narrow:
        return
    first = next(iter(narrow.values()))
    option = f"--{host.size.replace('_', '-')}"
    raise UsageError(
        f"{option} {_rank(host, first)} exceeds the smaller side of {_places(narrow)} "
        f"({first.out_features} x {first.in_features}); {_narrow_advice(plan, narrow, option)}"
    )


def _narrow_advice(plan: Plan, narrow: dict[str, Site], option: str) -> str:
    """The end of the message about layers that are narrower than the rank: what to type."""
    least = min(min(site.in_features, site.out_features) for site in narrow.values())
    wide = [site.path for site in plan.sites if site.path not in narrow]
    names = unique_endings(narrow, wide)
    sides = {name: min(min(narrow[p].in_features, narrow[p].out_features) for p in names[name]) for name in names}
    pattern = f"--rank-pattern {_listed([f'{name}={side}' for name, side in sides.items()])}"
    if not wide:
        return f"use {pattern}" if any(site.rank for site in narrow.values()) else f"use {option} {least} or less"
    takes_pattern = plan.stack.host and any(field.name == "rank_pattern" for field in plan.stack.host.options())
    # Factors of such a rank would have no room for the coefficients.
    takes_pattern = takes_pattern and max(plan.stack.k or (0,)) <= most_coefficients(plan.stack, least**2)
    choices = [*([pattern] if takes_pattern else []), f"--exclude-modules {_listed(names)}"]
    return f"use {', '.join(choices)} or {option} {least} or less"


def _rank(host: Host, site: Site) -> int:
    """The hidden width of one copy at a site."""
    return max(f.shape[f.hidden_axis] for f in host.factors(site) if f.hidden_axis is not None and len(f.shape) > 1)


def _check_widths(plan: Plan) -> None:
    """Refuse a hidden width beyond the layer's limit, and masks that keep nothing."""
    host = plan.stack.host
    assert host is not None
    for site in plan.sites:
        for factor in host.factors(site):
            copies = plan.stack.copies_of(factor)
            if factor.hidden_axis is None:
                continue
            count = copies.copies if copies else 1
            width, limit = factor.shape[factor.hidden_axis], largest_size(host, site, 1)
            limit = max(site.in_features, site.out_features) if _is_update(host, site) else limit
            if width * count > limit:
                raise UsageError(
                    f"a hidden width of {width * count} (rank times copies) exceeds the layer {site.path}, which has "
                    f"room for {limit}; lower --{host.size.replace('_', '-')} or --copies, or narrow --target-modules"
                )
            if copies and copies.masks == "random" and copies.kept(factor.size) == 0:
                raise UsageError(
                    f"--density {copies.density} keeps none of the {factor.size} entries of {factor.name} at "
                    f"{site.path}; raise it, or make the method larger"
                )


def _check_coefficients(plan: Plan) -> None:
    """Refuse more coefficients than a few for each entry of a factor, all such layers in one message."""
    crowded: dict[str, tuple[int, str, int]] = {}
    for role, groups in plan.groups().items():
        for factor, sites in groups:
            coefficients = plan.coefficients(factor)
            if coefficients and coefficients.k > most_coefficients(plan.stack, factor.size):
                crowded |= {site.path: (factor.size, role, coefficients.k) for site in sites}
    if crowded:
        names = unique_endings(crowded, [site.path for site in plan.sites if site.path not in crowded])
        size, role, k = min(crowded.values())
        most = most_coefficients(plan.stack, size)
        what = f"{most // size} times the" if most > size else "--basis group has room for in the"
        raise UsageError(
            f"--k {k} is more than {what} {counted(size, 'entry', 'entries')} of {role} at {_places(crowded)}; use "
            f"--k {most} or less, or --exclude-modules {_listed(names)}"
        )


def _check_work(plan: Plan, parameters: int) -> None:
    """Refuse random numbers, or factors made from them, out of proportion to the model's parameters."""
    words = entries = 0
    for groups in plan.groups().values():
        for factor, sites in groups:
            options = (factor, plan.coefficients(factor), plan.stack.copies_of(factor))
            for purpose, count in words_used(*options).items():
                words += count * (1 if factor.frozen and purpose == "init" else len(sites))
            entries += entries_made(*options, len(sites))
    most_words, most_entries = max(LEAST_WORDS, MAX_WORDS * parameters), max(LEAST_ENTRIES, MAX_ENTRIES * parameters)
    for count, most, what in ((words, most_words, "random words"), (entries, most_entries, "entries of factors")):
        if count > most:
            raise UsageError(
                f"the adapter needs {count / 1e6:,.0f} million {what}, more than the {most / 1e6:,.0f} million that a "
                f"model of {parameters:,} parameters allows; {_smaller(plan)}"
            )


def _smaller(plan: Plan) -> str:
    """The options that make an adapter smaller."""
    stack, options = plan.stack, []
    if "uniform" in (stack.k and stack.basis, plan.head.moved and plan.head.basis):
        options.append("choose --basis hadamard")
    options += ["lower --k"] if stack.k else []
    options += ["lower --head-k, or choose --head full"] if plan.head.moved else []
    options += ["lower --copies"] if stack.copies else []
    options += [f"lower --{stack.host.size.replace('_', '-')}"] if stack.host and stack.host.size else []
    return ", or ".join([*options, *(["narrow --target-modules"] if plan.sites else [])])


def _tensors(model: nn.Module) -> Iterable[Tensor]:
    """The base model's parameters, and its buffers: a quantised layer may keep its weight in one."""
    held: dict[int, Tensor] = {}
    for _, module in base_modules(model):
        held |= {
            id(tensor): tensor
            for tensor in (*module._parameters.values(), *module._buffers.values())
            if tensor is not None
        }
    return held.values()


def unique_endings(paths: Iterable[str], others: Iterable[str]) -> dict[str, list[str]]:
    """Names to type for layers, each with the paths it stands for: the shortest ending that no other layer has."""
    taken = {ending for path in others for ending in _endings_of(path)}
    names: dict[str, list[str]] = {}
    for path in paths:
        *shorter, whole = _endings_of(path)
        names.setdefault(next((ending for ending in shorter if ending not in taken), whole), []).append(path)
    return names


def _endings_of(path: str) -> list[str]:
    """A layer's path without its part, from the last piece to the whole of it."""
    pieces = path.partition("#")[0].split(".")
    return [".".join(pieces[-length:]) for length in range(1, len(pieces) + 1)]


def _places(paths: Iterable[str]) -> str:
    """The first of some layers, and how many more there are."""
    first, *others = paths
    return first + (f" and {len(others)} more layers" if len(others) > 1 else f" and {others[0]}" if others else "")


def _listed(words: Collection[str]) -> str:
    """The first few of some words, as a list on the command line."""
    return ",".join([*islice(words, _NAMED), *(["..."] if len(words) > _NAMED else [])])
