"""The choices of each row, as columns of their own or one of lists have them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from capaft.support.errors import UsageError
from capaft.tasks.base.columns import Columns, column_values, describe_row

if TYPE_CHECKING:
    from datasets import Dataset


def choices_of(rows: Dataset, columns: Columns) -> list[tuple[list[str], list[str]]]:
    """The choices of each row, and their names where the data has any.

    Raises:
        UsageError: a row has fewer than two choices, or lacks one.
    """
    choices = listed_choices(rows, columns)
    for row, (texts, _) in enumerate(choices):
        if fault := fault_of(columns, texts):
            raise UsageError(f"{describe_row(rows, columns, row)}: {fault}; fill it in or drop the row")
    return choices


def listed_choices(rows: Dataset, columns: Columns) -> list[tuple[list[Any], list[str]]]:
    """The choices of each row as they are; a missing one is None.

    If each choice has a column of its own, a row may leave the last ones empty.
    """
    rows_of_choices: list[tuple[list[Any], list[str]]] = []
    if len(columns.choices) > 1:
        for cells in zip(*(column_values(rows, name) for name in columns.choices), strict=True):
            size = max((at + 1 for at, text in enumerate(cells) if text is not None), default=0)
            rows_of_choices.append((list(cells[:size]), []))
        return rows_of_choices
    for value in column_values(rows, columns.choices[0]):
        choices = value if isinstance(value, dict) else {"text": value, "label": []}
        rows_of_choices.append((choices["text"] or [], choices["label"] or []))
    return rows_of_choices


def fault_of(columns: Columns, texts: Sequence[str | None]) -> str:
    """The reason why a row's choices cannot be used; empty if they can."""
    if len(texts) >= 2 and None not in texts:
        return ""
    what = "a choice is missing" if None in texts else "there are fewer than two choices"
    return f"{what} in column{'s' if columns.choices[1:] else ''} {', '.join(columns.choices)}"
