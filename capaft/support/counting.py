"""Words that agree with a number, for messages."""

from __future__ import annotations


def agreeing(count: int, one: str, several: str) -> str:
    """The form of a word for one thing, or for another number of them: "row" or "rows", "is" or "are"."""
    return one if count == 1 else several
