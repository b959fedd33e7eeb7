"""The names by which a PEFT configuration means modules, chosen so that PEFT finds those modules and no others.

A name is best the end of paths, such as `q_proj`: servers stack the weights of all layers under it, and drop or refuse
what some layer lacks. So layers that the adapter leaves out are counted in, and get an update of zeros.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from capaft.support.errors import UsageError

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


@dataclass(frozen=True)
class ModuleNames:
    """Names of modules in a PEFT configuration.

    Attributes:
        names: the names, sorted.
        modules: paths of all modules that they mean.
    """

    names: tuple[str, ...]
    modules: frozenset[str]

    @property
    def are_ends(self) -> bool:
        """True if the names are alike in every layer."""
        return not any(map(_NUMBER.search, self.names))


def target_names(targets: Collection[str], similar: Iterable[str], modules: Iterable[str]) -> ModuleNames:
    """The shortest names that mean the targets in every layer, and nothing else, as `target_modules` finds modules.

    Args:
        targets: paths of modules to adapt.
        similar: paths of modules that could be adapted as well: those that PEFT knows how to adapt.
        modules: paths of all modules that `target_modules` can find.

    Raises:
        UsageError: PEFT cannot tell one of the targets from another module.
    """
    layers: dict[str, set[str]] = defaultdict(set)
    for path in similar:
        layers[_template(path)].add(path)
    allowed = set(targets).union(*(layers[_template(path)] for path in targets))
    meant = _by_end(modules)
    ends = {path: next((end for end in _ends(path) if meant[end] <= allowed), path) for path in targets}
    names = sorted(set(ends.values()))
    adapted = frozenset(path for name in names for path in meant[name])
    if others := sorted(adapted - allowed):
        raise UsageError(f"PEFT would adapt {others[0]} as well, whose path ends like that of a target; merge the run")
    return ModuleNames(tuple(names), adapted)


def saved_names(saved: Collection[str], modules: Iterable[str], targets: Collection[str]) -> tuple[str, ...]:
    """The shortest names that mean modules to be replaced as a whole, as `modules_to_save` finds them.

    PEFT compares ends of paths letter by letter there, so that `classifier` also means `pre_classifier`, and leaves
    out targets inside what it means. A name that means more than it should is taken where no other is left.

    Args:
        saved: paths of the modules.
        modules: paths of all modules.
        targets: paths of modules to adapt.
    """
    paths = list(modules)

    def is_exact(end: str) -> bool:
        return saved_by([end], paths) <= set(saved) and not excludes(end, targets)

    return tuple(sorted({next(filter(is_exact, _ends(path)), path) for path in saved}))


def saved_by(names: Collection[str], modules: Iterable[str]) -> set[str]:
    """Paths of the modules that names in `modules_to_save` mean."""
    return {path for path in modules if any(path.endswith(name) for name in names)}


def excludes(name: str, targets: Iterable[str]) -> list[str]:
    """Targets that PEFT would leave out, since a name in `modules_to_save` means a module around them."""
    pattern = re.compile(rf"(^|.*\.){name}($|\..*)")
    return [path for path in targets if pattern.match(path)]


def _template(path: str) -> str:
    """A path with its numbers left out, so that it is that of every layer."""
    return _NUMBER.sub("*", path)


def _ends(path: str) -> list[str]:
    """The ends of a path behind its last number, from the shortest; all but the path itself where it has no number."""
    pieces = path.split(".")
    numbers = [index for index, piece in enumerate(pieces) if piece.isdigit()]
    first = numbers[-1] + 1 if numbers else 0
    return [".".join(pieces[start:]) for start in range(len(pieces) - 1, first - 1, -1)]


def _by_end(modules: Iterable[str]) -> dict[str, set[str]]:
    """By each end of the paths, the paths that it means."""
    meant: dict[str, set[str]] = defaultdict(set)
    for path in modules:
        pieces = path.split(".")
        for start in range(len(pieces)):
            meant[".".join(pieces[start:])].add(path)
    return meant
