"""The problem that labels stand for: one class of several, any number of classes, or a number."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Literal

from capaft.config.choices import MISSING_VALUES
from capaft.support.errors import UsageError
from capaft.tasks.base.columns import Columns, cell_kind, column_values, is_text, value_counts
from capaft.tasks.labels.numbers import is_number, is_whole, plain_number

if TYPE_CHECKING:
    from datasets import Dataset

# Share of the texts in a column of numbers that are numbers at least.
_MOSTLY = 0.75


def problem_of(rows: Dataset, columns: Columns) -> Literal["single", "multi", "regression"]:
    """The problem that a column of labels stands for.

    Raises:
        UsageError: the labels are texts, some of them fractions, and many of them words or in an odd notation.
    """
    if columns.label is None or cell_kind(rows.features[columns.label]) == "list":
        return "multi"
    if cell_kind(rows.features[columns.label]) == "float":
        # NaN is not greater than 0, and reported as a missing label later.
        fractions = (value % 1 > 0 for value in column_values(rows, columns.label) if value is not None)
        return "regression" if any(fractions) else "single"
    if is_text(rows.features[columns.label]):
        return _of_texts(columns.label, value_counts(rows, columns.label))
    return "single"


def _of_texts(name: str, counts: Counter[str]) -> Literal["single", "regression"]:
    """The problem that labels which are texts stand for: most of them numbers, some with a fraction, or classes."""
    numbers = {text: count for text, count in counts.items() if is_number(text)}
    fraction = next((text for text in numbers if not is_whole(text)), None)
    if fraction is None:
        return "single"
    if sum(numbers.values()) >= _MOSTLY * counts.total():
        if sum(counts[text] for text in numbers if plain_number(text) is not None) >= _MOSTLY * counts.total():
            return "regression"
        odd = next(text for text in numbers if plain_number(text) is None)
        raise UsageError(
            f"column {name!r} holds numbers such as {odd!r}, which may be read in several ways; write them as 1250.5, "
            "or choose --problem single, by which every text is a class"
        )
    word = next(text for text in counts if text not in numbers)
    raise UsageError(
        f"column {name!r} holds numbers such as {fraction!r} and words such as {word!r}; choose --problem regression "
        "(and drop the words) or --problem single, by which every text is a class"
    )


def holds_numbers(rows: Dataset, name: str) -> bool:
    """True if most of the different texts of a column are numbers, missing values aside."""
    texts = [text for text in rows.unique(name) if text and text.strip() not in MISSING_VALUES]
    return bool(texts) and sum(map(is_number, texts)) >= _MOSTLY * len(texts)
