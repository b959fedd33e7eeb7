"""Words that agree with a number, for messages."""

from __future__ import annotations


def agreeing(count: float, one: str, several: str) -> str:
    """The form of a word for one thing, or for another number of them: "row" or "rows", "is" or "are"."""
    return one if count == 1 else several


def counted(count: int, one: str, several: str = "") -> str:
    """A number of things: "1 row", "1,234 rows"; `several` is the plural if it does not end in s."""
    return f"{count:,} {agreeing(count, one, several or f'{one}s')}"
