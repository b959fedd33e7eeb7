"""The choices of each row, as columns of their own or one of lists have them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from capaft.data.lazy import ColumnValues, Derived
from capaft.support.errors import UsageError
from capaft.tasks.base.columns import Columns, describe_row

if TYPE_CHECKING:
    from datasets import Dataset


def choices_of(rows: Dataset, columns: Columns) -> Sequence[tuple[list[str], list[str]]]:
    """The choices of each row, and their names where the data has any.

    Raises:
        UsageError: a row has fewer than two choices, or lacks one.
    """
    choices = listed_choices(rows, columns)
    for row, (texts, _) in enumerate(choices):
        if fault := fault_of(columns, texts):
            raise UsageError(f"{describe_row(rows, columns, row)}: {fault}; fill it in or drop the row")
    return choices


def listed_choices(rows: Dataset, columns: Columns) -> Sequence[tuple[list[Any], list[str]]]:
    """The choices of each row as they are; a missing one is None.

    If each choice has a column of its own, a row may leave the last ones empty.
    """
    cells = [ColumnValues(rows, name) for name in columns.choices]
    return Derived(_of_cells, *cells) if len(cells) > 1 else Derived(_of_value, *cells)


def _of_cells(*cells: Any) -> tuple[list[Any], list[str]]:
    size = max((at + 1 for at, text in enumerate(cells) if text is not None), default=0)
    return list(cells[:size]), []


def _of_value(value: Any) -> tuple[list[Any], list[str]]:
    choices = value if isinstance(value, dict) else {"text": value, "label": []}
    return choices["text"] or [], choices["label"] or []


def fault_of(columns: Columns, texts: Sequence[str | None]) -> str:
    """The reason why a row's choices cannot be used; empty if they can."""
    if len(texts) >= 2 and None not in texts:
        return ""
    what = "a choice is missing" if None in texts else "there are fewer than two choices"
    return f"{what} in column{'s' if columns.choices[1:] else ''} {', '.join(columns.choices)}"
