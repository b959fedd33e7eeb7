"""Whole records, a window of rows after the other: what the rows have of their own, and the answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from datasets import Dataset

from capaft.inference.records import passed_names, passed_values
from capaft.inference.rows import RowSource
from capaft.tasks.base.columns import Columns
from capaft.tasks.base.task_answers import ERROR, Record


class Answers(Protocol):
    """What answers rows: an `Answerer`, or several behind one."""

    def fields(self) -> tuple[str, ...]:
        """Names of the fields that an answer may have, in their order."""

    def answer(self, rows: Dataset, columns: Columns, first: int, advance: Callable[[int], None]) -> list[Record]:
        """See `Answerer.answer`."""


def record_fields(answerer: Answers, source: RowSource, keep: Sequence[str] | None) -> list[str]:
    """Names of all fields that a record may have, in their order."""
    fields = answerer.fields()
    return [*passed_names(source.names, keep, fields).values(), *fields, ERROR]


def answered(
    answerer: Answers,
    source: RowSource,
    keep: Sequence[str] | None,
    advance: Callable[[int], None] = lambda rows: None,
) -> Iterator[list[Record]]:
    """The records of a source, window by window.

    Args:
        answerer: what answers the rows.
        source: the rows.
        keep: columns of the rows that the records hold; all if None.
        advance: called with the number of rows that are done.

    Raises:
        TrainingError: memory ran out with a single row.
    """
    shown = passed_names(source.names, keep, answerer.fields())
    for window in source.windows:
        answers = answerer.answer(window.rows, source.columns, window.first, advance)
        for at, reason in window.faults.items():
            # What cannot be read is empty, and so has no answer.
            if ERROR in answers[at]:
                answers[at] = {ERROR: reason}
        yield [given | answer for given, answer in zip(passed_values(window.rows, shown), answers, strict=True)]
