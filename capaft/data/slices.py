"""Slices: `[a:b]` after a data set's name takes a part of its training rows."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from capaft.support.errors import UsageError

_SUFFIX = re.compile(r"(?P<source>.+?)\[(?P<bounds>[^\[\]/]*)\]?", re.DOTALL)
_BOUND = re.compile(r"(-?[0-9]{1,18}|-?[0-9]{1,3}(\.[0-9]{1,15})?%)?")


@dataclass(frozen=True)
class Slice:
    """Python's `[start:stop]`; a bound is a number of rows, a percentage of them if it ends in %, or blank."""

    start: str
    stop: str

    def rows(self, count: int) -> range:
        """Indices that the slice takes of `count` rows."""
        return range(count)[_position(self.start, count) : _position(self.stop, count)]


def split_off_slice(spec: str) -> tuple[str, Slice | None]:
    """Split a name into the source and its slice, if there is one.

    Raises:
        UsageError: the name ends in brackets that do not hold a slice.
    """
    match = _SUFFIX.fullmatch(spec)
    if match is None:
        return spec, None
    start, colon, stop = match["bounds"].partition(":")
    usable = all(_BOUND.fullmatch(bound) and abs(_share(bound)) <= 1 for bound in (start, stop))
    if not (colon and usable and spec.endswith("]")):
        raise UsageError(
            f"{spec}: write the slice as [a:b] with counts or percentages of rows, such as [:1000], [100:200] or [:5%]"
        )
    return match["source"], Slice(start, stop)


def _share(bound: str) -> Fraction:
    return Fraction(bound[:-1]) / 100 if bound.endswith("%") else Fraction(0)


def _position(bound: str, count: int) -> int | None:
    if not bound:
        return None
    return round(_share(bound) * count) if bound.endswith("%") else int(bound)
