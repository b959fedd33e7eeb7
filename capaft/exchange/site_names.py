"""Names for a given set of sites, in the language of `--target-modules` and `--rank-pattern`.

An adapter of another tool says where it is, site by site. An adapter file has a choice of at most a thousand characters
that leads to these sites, so one is looked for.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping

from torch import nn

from capaft.adapter.bounds import unique_endings
from capaft.adapter.file.path_templates import number_ranges, path_templates
from capaft.model.layers import layer_kinds
from capaft.model.names import canonical_path, in_head, renamed_path
from capaft.model.targets import MAX_TARGETS, TARGET_PRESETS, Targets, block_number
from capaft.model.weight_sites import find_weight_sites
from capaft.support.errors import UsageError

# More names than this are harder to read than a pattern.
_FEW = 16


def targets_of(model: nn.Module, paths: Collection[str], rename: dict[str, str] | None) -> Targets:
    """A choice of layers that leads to sites with these paths; to more, if none leads to exactly these.

    Args:
        model: the model.
        paths: canonical paths of the sites.
        rename: `{old: new}` pieces of module paths; see `find_weight_sites`.

    Raises:
        UsageError: no choice leads to them all.
    """
    wanted, problem = set(paths), None
    for targets in _choices(model, wanted, rename):
        try:
            sites = find_weight_sites(model, targets, rename)
        except UsageError as error:
            problem = problem or error
            continue
        if {site.path for site in sites} == wanted:
            return targets
    for targets in _wider(wanted):
        try:
            if wanted <= {site.path for site in find_weight_sites(model, targets, rename)}:
                return targets
        except UsageError as error:
            problem = problem or error
    raise problem or UsageError("an adapter file has no room for the names of its layers")


def rank_pattern_of(ranks: Mapping[str, int], most: int) -> tuple[str, ...] | None:
    """Entries of a rank pattern for the sites whose rank is not the most common one; None if they have no room.

    Args:
        ranks: of all sites, by their paths.
        most: the most common rank.
    """
    entries: list[str] = []
    for rank in sorted(set(ranks.values()) - {most}):
        paths = [path for path, its_rank in ranks.items() if its_rank == rank]
        names = unique_endings(paths, [path for path, its_rank in ranks.items() if its_rank != rank])
        words = list(names) if len(names) <= _FEW else [f"re:{_pattern(paths)}"]
        entries += [f"{word}={rank}" for word in words]
    return tuple(entries) if len(str(tuple(entries))) <= MAX_TARGETS else None


def most_common(ranks: Mapping[str, int]) -> int:
    """The rank that most sites have, the largest of several."""
    counts = Counter(ranks.values())
    return max(counts, key=lambda rank: (counts[rank], rank))


def _choices(model: nn.Module, wanted: set[str], rename: dict[str, str] | None) -> Iterator[Targets]:
    """Choices that may lead to exactly some sites, the most readable first."""
    if experts := {path for path in wanted if "#" in path}:
        # Packed experts have no names of their own; all of them make the preset.
        names = [*unique_endings(sorted(wanted - experts), _layer_names(model, rename) - wanted)]
        yield from _fitting(",".join([*names, "experts"]))
        return
    others = _layer_names(model, rename) - wanted
    names = _plain_names(unique_endings(sorted(wanted), others))
    if len(names) <= _FEW:
        yield from _fitting(",".join(names))
    blocks = {block_number(path) for path in wanted}
    if None not in blocks:
        beside = [path for path in others if block_number(path) in blocks]
        numbers = sorted(number for number in blocks if number is not None)
        yield from _fitting(
            ",".join(_plain_names(unique_endings(sorted(wanted), beside))), ",".join(number_ranges(numbers))
        )
    yield from _fitting(f"re:{_pattern(wanted)}")
    yield from _fitting(",".join(names))


def _wider(wanted: set[str]) -> Iterator[Targets]:
    """Choices that lead to some sites and, as a rule, to others."""
    if any("#" in path for path in wanted):
        yield Targets("all-linear,experts")
    yield from _fitting(",".join(sorted({path.rsplit(".", 1)[-1] for path in wanted})))
    yield Targets("all-linear")
    yield Targets("all-linear,conv,embeddings")


def _fitting(modules: str, layers: str = "") -> Iterator[Targets]:
    """The choice, if an adapter file has room for it."""
    if modules and len(modules) <= MAX_TARGETS and len(layers) <= MAX_TARGETS:
        yield Targets(modules, layers=layers)


def _plain_names(names: Mapping[str, list[str]]) -> list[str]:
    """Endings as words; a preset's name stands for other layers, so the whole paths stand in its place."""
    return [word for name, paths in names.items() for word in (paths if name in TARGET_PRESETS else [name])]


def _layer_names(model: nn.Module, rename: dict[str, str] | None) -> set[str]:
    """Canonical names of the layers that a word may match."""
    paths = (path for path in layer_kinds(model) if not in_head(model, path))
    return {renamed_path(canonical_path(model, path), rename) for path in paths}


def _pattern(paths: Collection[str]) -> str:
    """A regular expression that matches exactly these paths."""
    alternatives = [
        "".join(_group(piece) if at % 2 else re.escape(piece) for at, piece in enumerate(re.split(r"\{(.*?)\}", each)))
        for each in path_templates(paths)
    ]
    return f"^(?:{'|'.join(alternatives)})$"


def _group(items: str) -> str:
    """The alternatives of a template's braces."""
    words: list[str] = []
    for item in items.split(","):
        match = re.fullmatch(r"(\d+)-(\d+)", item)
        words += map(str, range(int(match[1]), int(match[2]) + 1)) if match else [re.escape(item)]
    return f"(?:{'|'.join(words)})"
