"""The way in which files are read: who is told of decisions, and whether a few faults may be left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


def _ignore(line: str) -> None:
    pass


@dataclass(frozen=True)
class Reading:
    """Choices of the reader.

    Attributes:
        say: called with one line for each thing that is decided, repaired or left out.
        strict: refuse a file of which a part would be left out.
        kept_faults: where given, a row that cannot be read is kept as an empty one, and stands here by its position
            with what is wrong.
    """

    say: Callable[[str], None] = _ignore
    strict: bool = False
    kept_faults: dict[int, str] | None = None


QUIETLY = Reading()
