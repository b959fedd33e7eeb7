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
    """

    say: Callable[[str], None] = _ignore
    strict: bool = False


QUIETLY = Reading()
