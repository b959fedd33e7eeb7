"""Values of a data set's rows that are read when they are needed, so that a column need not be in memory as a whole."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import datasets

ROWS = 1000
"""Rows that are read at a time."""

_MOST = 2**22
"""Characters, or what else a size counts, of the rows that are read at a time."""


def batches(rows: Iterable[Any], size: Callable[[Any], int], most: int = _MOST) -> Iterator[list[Any]]:
    """Rows in lists of `ROWS`, or of fewer that are large.

    Args:
        rows: the rows.
        size: tells how large one is, such as its characters.
        most: size at which a list is full.
    """
    batch: list[Any] = []
    total = 0
    for row in rows:
        batch.append(row)
        total += size(row)
        if len(batch) == ROWS or total > most:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch


class LazySequence(Sequence[Any]):
    """Base of sequences whose entries are made when they are read; equal to any sequence of the same entries."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(one == another for one, another in zip(self, other, strict=True))

    def __getitem__(self, index: Any) -> Any:
        places = range(len(self))[index]
        return self.at(places) if isinstance(places, int) else [self.at(place) for place in places]

    @abstractmethod
    def at(self, index: int) -> Any:
        """The entry at a place from 0."""


class ColumnValues(LazySequence):
    """A column as plain Python values.

    Args:
        rows: the split.
        name: the column.
    """

    def __init__(self, rows: datasets.Dataset, name: str) -> None:
        self._rows = rows.select_columns([name]).with_format(None)
        self._name = name

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Any]:
        for batch in self._rows.iter(ROWS):
            yield from batch[self._name]

    def at(self, index: int) -> Any:
        """See `LazySequence.at`."""
        return self._rows[index][self._name]


class Derived(LazySequence):
    """What a function makes of the entries of other sequences.

    Args:
        function: takes an entry of each of them.
        *sequences: of equal lengths.
    """

    def __init__(self, function: Callable[..., Any], *sequences: Sequence[Any]) -> None:
        self._function = function
        self._sequences = sequences

    def __len__(self) -> int:
        return len(self._sequences[0])

    def __iter__(self) -> Iterator[Any]:
        return map(self._function, *self._sequences)

    def at(self, index: int) -> Any:
        """See `LazySequence.at`."""
        return self._function(*(sequence[index] for sequence in self._sequences))
