"""Lines about how rows were read, of which some count rows and add up over batches of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Self


class CountedNote(str):
    """A line such as "3 of 5 rows are formatted".

    Args:
        count: rows that it is true of.
        total: rows that were looked at.
        text: the line from the word after the numbers.
    """

    __slots__ = ("rows", "what")

    rows: int
    what: str

    def __new__(cls, count: int, total: int, text: str) -> Self:
        """Make the line."""
        note = super().__new__(cls, f"{count} of {total} {text}")
        note.rows, note.what = count, text
        return note


class Notes:
    """The lines about rows that are read batch by batch."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self.total = 0

    def add(self, notes: Iterable[str], total: int) -> None:
        """Add the lines about a batch of `total` rows."""
        self.total += total
        for note in notes:
            if isinstance(note, CountedNote):
                self._counts[note.what] = self._counts.get(note.what, 0) + note.rows
            else:
                self._counts[note] = 0

    def lines(self) -> Sequence[str]:
        """The lines about all rows, in the order of their first rows."""
        return [CountedNote(count, self.total, text) if count else text for text, count in self._counts.items()]
