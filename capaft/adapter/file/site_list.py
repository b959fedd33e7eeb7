"""The sites of an adapter as its file lists them: all that a reader needs to draw every factor without the model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, pairwise
from typing import Any, Literal, NamedTuple, get_args

from capaft.adapter.file.path_templates import (
    MAX_CHARACTERS,
    MAX_PATHS,
    TOO_MANY,
    count_paths,
    expand,
    path_templates,
)
from capaft.adapter.plan import Plan
from capaft.support.errors import UsageError

Mark = Literal["", "embedding", "input"]
MAX_SIDE = 2**53


class SiteShape(NamedTuple):
    """The facts about a site that its factors depend on.

    Attributes:
        out_features: its outputs.
        in_features: its inputs.
        width: hidden width of one copy of its factors; 0 if they have none.
        mark: `embedding` for an embedding, `input` where a rescaling host acts on inputs, else empty.
    """

    out_features: int
    in_features: int
    width: int
    mark: Mark = ""

    def __str__(self) -> str:
        width = [f"width {self.width}"] if self.width else []
        return ", ".join([f"{self.out_features} x {self.in_features}", *width, *filter(None, [self.mark])])


class SiteGroup(NamedTuple):
    """Sites of one shape whose paths make one template."""

    template: str
    shape: SiteShape

    def record(self) -> list[Any]:
        """The group as the file has it."""
        return [self.template, *self.shape]


@dataclass(frozen=True)
class SiteList:
    """Sites by path, in the order of their paths.

    Attributes:
        groups: the sites as templates of paths, each with the shape of all its sites.
    """

    groups: tuple[SiteGroup, ...]

    @staticmethod
    def of(plan: Plan) -> SiteList:
        """The sites of a plan, as a file lists them.

        Raises:
            UsageError: they are too many for a file, or have sides that it cannot hold.
        """
        alike: dict[SiteShape, list[str]] = defaultdict(list)
        for site in plan.sites:
            mark: Mark = "input" if site.scales == "input" else "embedding" if site.kind == "embedding" else ""
            factors = plan.stack.host.factors(site) if plan.stack.host else ()
            width = max((f.shape[f.hidden_axis] for f in factors if f.hidden_axis is not None), default=0)
            alike[SiteShape(site.out_features, site.in_features, width, mark)].append(site.path)
        groups = [SiteGroup(template, shape) for shape, paths in alike.items() for template in path_templates(paths)]
        try:
            sites = SiteList.parse([group.record() for group in sorted(groups)])
        except ValueError as error:
            raise UsageError(f"an adapter file cannot hold these sites: {error}; narrow --target-modules") from None
        if list(sites) != [site.path for site in plan.sites]:
            raise RuntimeError("the templates of the sites' paths stand for other paths")
        return sites

    @staticmethod
    def parse(record: list[Any]) -> SiteList:
        """The sites from JSON values, whose limits are checked before a template is expanded.

        Raises:
            ValueError: they are no list of sites, name one twice, or are too many.
        """
        groups = tuple(map(_group, record))
        counts = [count_paths(group.template) for group in groups]
        if sum(count for count, _ in counts) > MAX_PATHS or sum(length for _, length in counts) > MAX_CHARACTERS:
            raise ValueError(TOO_MANY)
        if any(one.template >= other.template for one, other in pairwise(groups)):
            raise ValueError("its sites are not in order")
        sites = SiteList(groups)
        if len(sites.shapes) != sum(count for count, _ in counts):
            raise ValueError("it lists a site twice")
        return sites

    @cached_property
    def shapes(self) -> dict[str, SiteShape]:
        """Every site's shape by its path, sorted by path."""
        return dict(sorted(chain.from_iterable(((path, s) for path in expand(t)) for t, s in self.groups)))

    def __len__(self) -> int:
        return len(self.shapes)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def record(self) -> list[list[Any]]:
        """The list as the file has it."""
        return [group.record() for group in self.groups]

    def difference(self, other: SiteList) -> str | None:
        """The first site in which the other list differs from this one, a file's; None if they are the same."""
        if missing := [path for path in self if path not in other.shapes]:
            return f"{_named(missing)} in the file alone"
        if extra := [path for path in other if path not in self.shapes]:
            return f"{_named(extra)} in the model alone"
        for path, shape in self.shapes.items():
            if other.shapes[path] != shape:
                return f"{path or 'the model itself'} is {shape} in the file and {other.shapes[path]} in the model"
        return None


def _named(paths: list[str]) -> str:
    return f"{paths[0] or 'the model itself'} is" if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} others are"


def _group(row: Any) -> SiteGroup:
    if not isinstance(row, list) or [type(value) for value in row] != [str, int, int, int, str]:
        raise ValueError("a group of its sites is not a template, two sides, a width and a mark")
    template, shape = row[0], SiteShape(*row[1:])
    sides = (shape.out_features, shape.in_features, shape.width)
    if not all(least <= side < MAX_SIDE for side, least in zip(sides, (1, 1, 0), strict=True)) or (
        shape.mark not in get_args(Mark)
    ):
        raise ValueError(f"its sites {template} have an impossible shape")
    return SiteGroup(template, shape)
