"""Choose the columns of a data set that a task reads, and read them.

A usual name decides first, then the type: the only column of text is the text, the only column of integers or of
few distinct words is the label. Where two columns would do, capaft asks instead of guessing: a model trained on the
wrong column looks like a model that learns badly.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NoReturn, cast

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from capaft.data.lazy import ROWS, ColumnValues
from capaft.data.spool import gathered
from capaft.support.errors import UsageError, did_you_mean
from capaft.support.listing import listed, shortened_name

CellKind = Literal["text", "class", "integer", "bool", "float", "list", "other"]
"""Type of a column's cells."""

# A column of row numbers as they were read, which hold when rows are dropped or set aside.
_ROW_NUMBER = "__row__"
_DTYPES = re.compile(r"(?P<text>(large_)?string)|(?P<integer>u?int\d+)|(?P<bool>bool)|(?P<float>float\d+)")
_ID = re.compile(r"(.*[^a-z])?(id|idx|guid|uuid|index)|unnamed: 0|__index_level_\d+__", re.IGNORECASE)
_CAMEL_CASE_ID = re.compile(r".*[a-z]I[dD]")


@dataclass(frozen=True)
class Columns:
    """The columns that a task reads.

    Attributes:
        text: the input: a text, tokens, a question, an image, ...
        pair: second part of the input, if any: the other text, a context.
        label: the expected output; None if there is none to compare with.
        choices: columns of the answers to choose from, or the one that lists them; or one column for each label.
    """

    text: str
    pair: str | None = None
    label: str | None = None
    choices: tuple[str, ...] = ()

    def describe(self) -> str:
        """One line for the log."""
        pair = "" if self.pair is None else f" and {self.pair!r}"
        choices = "" if not self.choices else f" with the choices {', '.join(map(repr, self.choices))}"
        label = "" if self.label is None else f", label from {self.label!r}"
        return f"input from {self.text!r}{pair}{choices}{label}"


class MissingLabelsError(UsageError):
    """Rows that are to be trained on, or scored, have no labels."""


def find_column(
    dataset: datasets.Dataset,
    role: str,
    column: str | None,
    names: Sequence[Sequence[str]],
    fits: Callable[[Any], bool],
    content: str,
    taken: Collection[str | None] = (),
) -> str | None:
    """The column of a role: the user's choice, else the only fitting column with a usual name.

    Args:
        dataset: the split.
        role: `text`, `pair` or `label`; the flag is `--<role>-column`.
        column: the user's choice, if any.
        names: usual names in groups, plain (lower case without punctuation); earlier groups are preferred.
        fits: tells whether a column with that `datasets` feature can have the role.
        content: what such a column holds, for the message when the chosen one does not.
        taken: columns that have another role.

    Returns:
        The column's name, or None if the user chose none and no usual name fits.

    Raises:
        UsageError: the chosen column is missing, does not fit or is taken, or several usual names fit.
    """
    if column is not None:
        option = f"--{role}-column {column}"
        if column not in dataset.column_names:
            hint = did_you_mean(column, dataset.column_names)
            raise UsageError(f"{option}: there is no such column; the columns are {list_columns(dataset)}{hint}")
        if column in taken:
            raise UsageError(f"{option}: this column has another role; name a different column with each option")
        if not fits(dataset.features[column]):
            raise UsageError(f"{option}: this column does not hold {content}; the columns are {list_columns(dataset)}")
        return column
    free = [name for name, feature in dataset.features.items() if name not in taken and fits(feature)]
    for group in names:
        candidates = [name for name in free if plain_name(name) in group]
        if len(candidates) > 1:
            ask_for_column(dataset, role, f"{' and '.join(map(repr, candidates))} both could be")
        if candidates:
            return candidates[0]
    return None


def ask_for_column(dataset: datasets.Dataset, role: str, why: str) -> NoReturn:
    """Ask the user to name the column of a role.

    Raises:
        UsageError: always.
    """
    option = "--text-column (and --pair-column for pairs)" if role == "text" else f"--{role}-column"
    kind = MissingLabelsError if role == "label" else UsageError
    raise kind(f"cannot tell which column is the {role} ({why}); choose with {option} among {list_columns(dataset)}")


def cell_kind(feature: Any) -> CellKind:
    """Type of the cells of a column with that `datasets` feature."""
    if isinstance(feature, datasets.ClassLabel):
        return "class"
    if isinstance(feature, datasets.List | datasets.LargeList):
        return "list"
    match = _DTYPES.fullmatch(feature.dtype) if isinstance(feature, datasets.Value) else None
    return cast(CellKind, (match and match.lastgroup) or "other")


def is_text(feature: Any) -> bool:
    """True if a column with that feature holds one text per row."""
    return cell_kind(feature) == "text"


def is_id(name: str) -> bool:
    """True if the name is usual for a column that identifies or numbers the rows."""
    return bool(_ID.fullmatch(name) or _CAMEL_CASE_ID.fullmatch(name))


@lru_cache(maxsize=2**14)
def plain_name(name: str) -> str:
    """A name in lower case without punctuation, for comparison: "Sentence_1" becomes "sentence1"."""
    return re.sub(r"[\W_]", "", name.lower())


def list_columns(dataset: datasets.Dataset) -> str:
    """List the columns with their types, for a message."""
    features = [(name, feature) for name, feature in dataset.features.items() if name != _ROW_NUMBER]
    return listed(
        f"{shortened_name(name)} ({getattr(feature, 'dtype', None) or 'nested'})" for name, feature in features
    )


def column_values(dataset: datasets.Dataset, name: str) -> list[Any]:
    """A column as plain Python values."""
    return list(dataset.with_format(None)[name][:])


def value_counts(dataset: datasets.Dataset, name: str) -> Counter[Any]:
    """Number of rows with each value of a column that is not null."""
    counts: Counter[Any] = Counter()
    for table in dataset.select_columns([name]).with_format("arrow").iter(10_000):
        values, numbers = pc.value_counts(table.column(0).drop_null()).flatten()
        counts.update(dict(zip(values.to_pylist(), numbers.to_pylist(), strict=True)))
    return counts


def filled_rows(dataset: datasets.Dataset, *names: str | None) -> NDArray[np.bool_]:
    """True for rows without a missing value in these columns, `(rows,)`.

    Missing are null, NaN, a list without a value, and the -1 of a withheld class. An empty text counts as a text:
    `with_nulls` makes null of those that stand for a missing value.
    """
    filled = np.ones(len(dataset), dtype=np.bool_)
    for name in names:
        if name is not None:
            filled &= _filled(dataset, name)
    return filled


def _filled(dataset: datasets.Dataset, name: str) -> NDArray[np.bool_]:
    if name not in dataset.column_names:
        # A field of a column, such as a language of a translation.
        dataset = dataset.flatten()
        name = next(path for path in dataset.column_names if path.rpartition(".")[2] == name)
    feature = dataset.features[name]
    parts = [np.ones(0, dtype=np.bool_)]
    for table in dataset.select_columns([name]).with_format("arrow").iter(10_000):
        column = table.column(0)
        filled = column.is_valid()
        if isinstance(feature, datasets.ClassLabel):
            filled = pc.and_(pc.greater_equal(column, 0), pc.less(column, len(feature.names)))
        elif pa.types.is_floating(column.type):
            filled = pc.invert(pc.is_nan(column))
        elif isinstance(feature, datasets.List | datasets.LargeList):
            filled = _holds_value(column)
        parts.append(pc.fill_null(filled, False).to_numpy())
    return np.concatenate(parts)


def _holds_value(lists: pa.ChunkedArray) -> pa.ChunkedArray:
    """True for lists with a value that is not null, `(rows,)`."""
    values = pc.list_flatten(lists)
    parents = pc.filter(pc.list_parent_indices(lists), values.is_valid())
    return pa.chunked_array([pc.is_in(pa.array(np.arange(len(lists))), value_set=parents.unique())])


def row_texts(dataset: datasets.Dataset, columns: Columns) -> tuple[list[str], list[str] | None]:
    """The text of each row and, if there are pairs, its second text, all in memory.

    Raises:
        UsageError: as `text_values`.
    """
    first, second = text_values(dataset, columns)
    return list(first), None if second is None else list(second)


def text_values(dataset: datasets.Dataset, columns: Columns) -> tuple[Sequence[str], Sequence[str] | None]:
    """The text of each row and, if there are pairs, its second text, read when they are needed.

    Raises:
        UsageError: a row has no text; an empty one counts as a text.
    """
    names = [name for name in (columns.text, columns.pair) if name is not None]
    for name in names:
        filled = filled_rows(dataset, name)
        if not filled.all():
            row = row_numbers(dataset)[int(filled.argmin())]
            raise UsageError(f"row {row}: no text in column {name!r}; fill it in or drop the row")
    first, *others = (ColumnValues(dataset, name) for name in names)
    return first, next(iter(others), None)


def with_row_numbers(dataset: datasets.Dataset, first: int = 1) -> datasets.Dataset:
    """Number the rows, from 1 or another number on; they keep these numbers in any later selection."""
    if _ROW_NUMBER in dataset.column_names:
        return dataset
    return gathered(dataset).add_column(_ROW_NUMBER, np.arange(first, first + len(dataset)))


def row_numbers(dataset: datasets.Dataset) -> list[int]:
    """Number of each row, from 1, in the data as read."""
    if _ROW_NUMBER in dataset.column_names:
        return column_values(dataset, _ROW_NUMBER)
    return list(range(1, len(dataset) + 1))


def row_batches(dataset: datasets.Dataset) -> Iterator[datasets.Dataset]:
    """The rows, some at a time, with their numbers."""
    dataset = with_row_numbers(dataset)
    for start in range(0, len(dataset), ROWS):
        yield dataset.select(range(start, min(start + ROWS, len(dataset))))


def describe_row(dataset: datasets.Dataset, columns: Columns, row: int) -> str:
    """A row by its number and, if its input is a text, by the beginning of that."""
    number = f"row {row_numbers(dataset.select([row]))[0] if _ROW_NUMBER in dataset.column_names else row + 1}"
    if not is_text(dataset.features[columns.text]):
        return number
    text = " ".join(str(column_values(dataset.select([row]), columns.text)[0]).split())
    return f"{number} ({text[:37] + '...' if len(text) > 40 else text!r})"
