"""Labels that say which choice of a row is right: by its text, its name, its letter, or its number from 0 or 1."""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING, Any

from capaft.support.errors import UsageError
from capaft.tasks.base.columns import Columns, cell_kind, column_values, describe_row, is_text
from capaft.tasks.choices.rows import choices_of

if TYPE_CHECKING:
    from datasets import Dataset


def labels_of(rows: Dataset, columns: Columns) -> list[Any]:
    """The label of each row."""
    assert columns.label is not None
    return column_values(rows, columns.label)


def are_texts(rows: Dataset, columns: Columns) -> bool:
    """True if each label is the text of one of its row's choices, and not the name of one.

    Raises:
        UsageError: the labels may as well be numbers or letters, which would mean other choices.
    """
    if not is_text(rows.features[columns.label]):
        return False
    labels, choices = labels_of(rows, columns), choices_of(rows, columns)
    if not all(
        label not in names and texts.count(label) == 1 for label, (texts, names) in zip(labels, choices, strict=True)
    ):
        return False
    one_based = count_from_one(rows, columns, warn=False)
    as_texts = [texts.index(label) for label, (texts, _) in zip(labels, choices, strict=True)]
    as_places = [place_of(label, one_based) for label in labels]
    if as_texts != as_places and all(0 <= at < len(texts) for at, (texts, _) in zip(as_places, choices, strict=True)):
        row = next(row for row, at in enumerate(as_places) if at != as_texts[row])
        raise UsageError(
            f"{describe_row(rows, columns, row)}: the label {labels[row]!r} is the text of one choice and the number "
            f"or letter of another; put whole numbers in column {columns.label!r}, 0 for a row's first choice"
        )
    return True


def count_from_one(rows: Dataset, columns: Columns, *, warn: bool) -> bool:
    """True if the numbers among the labels count from 1; a `ClassLabel` never does, nor does the name of a choice."""
    if cell_kind(rows.features[columns.label]) == "class":
        return False
    numbers = [
        (number, len(choices))
        for label, (choices, names) in zip(labels_of(rows, columns), choices_of(rows, columns), strict=True)
        if str(label) not in names and (number := _number(label)) is not None
    ]
    if not numbers or not all(1 <= number <= size for number, size in numbers):
        return False
    if warn and not any(number == size for number, size in numbers):
        warnings.warn(
            f"no label in column {columns.label!r} is 0, and none is the last choice: labels are assumed to count from "
            "1; if they count from 0, write letters from A instead",
            stacklevel=3,
        )
    return True


def _number(label: Any) -> int | None:
    """A label as a number, or None if it is not one."""
    return int(label) if isinstance(label, int) or re.fullmatch(r"\d+", label or "") else None


def place_of(label: Any, one_based: bool) -> int:
    """The index that a number, from 1 if `one_based`, or a letter means; -1 for other labels."""
    number = _number(label)
    if number is not None:
        return number - one_based
    return ord(label.upper()) - ord("A") if re.fullmatch("[A-Za-z]", label) else -1
