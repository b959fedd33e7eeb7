"""Which columns of a data set a task reads.

A name that people use for the purpose decides first, then the type: the only column of text is the text, the
only column of integers or of few distinct words is the label. Where two would do, capaft asks instead of
guessing: a model trained on the wrong column looks like a model that learns badly.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, cast

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from capaft.support.errors import UsageError, did_you_mean

CellKind = Literal["text", "class", "integer", "bool", "float", "list", "other"]
"""What one cell of a column holds."""

# What rows are called by once some of them are left out or set aside.
_NUMBERS = "__row__"
_DTYPES = re.compile(r"(?P<text>(large_)?string)|(?P<integer>u?int\d+)|(?P<bool>bool)|(?P<float>float\d+)")
_ID = re.compile(r"(.*[^a-z])?(id|idx|guid|uuid|index)|unnamed: \d+|__index_level_\d+__", re.IGNORECASE)
_CAMEL_CASE_ID = re.compile(r".*[a-z]I[dD]")


@dataclass(frozen=True)
class Columns:
    """The columns that a task reads.

    Attributes:
        text: what goes in: a text, tokens, a question, an image, ...
        pair: its second part, if it has one: the other text, a context.
        label: what should come out, if anything is to be compared with.
        choices: columns of the answers to choose from, or the one that lists them; columns of several labels.
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


def find_column(
    dataset: datasets.Dataset,
    role: str,
    given: str | None,
    names: Sequence[Sequence[str]],
    fits: Callable[[Any], bool],
    what: str,
    taken: Collection[str | None] = (),
) -> str | None:
    """The column of a role: the one that the user named, else the only one with a usual name that fits.

    Args:
        dataset: the split.
        role: `text`, `pair` or `label`; the flag is `--<role>-column`.
        given: what the user named.
        names: usual names in groups, plain (lower case without punctuation); earlier groups are preferred.
        fits: whether a column with that `datasets` feature can have the role.
        what: what such a column holds, for the message when the given one does not.
        taken: columns that have another role.

    Returns:
        Its name, or None if no name is given and none is found.

    Raises:
        UsageError: the given column is not there, does not fit or is taken, or several usual names fit.
    """
    if given is not None:
        option = f"--{role}-column {given}"
        if given not in dataset.column_names:
            hint = did_you_mean(given, dataset.column_names)
            raise UsageError(f"{option}: there is no such column; the columns are {list_columns(dataset)}{hint}")
        if given in taken:
            raise UsageError(f"{option}: this column has another role; name a different column with each option")
        if not fits(dataset.features[given]):
            raise UsageError(f"{option}: this column does not hold {what}; the columns are {list_columns(dataset)}")
        return given
    free = [name for name, feature in dataset.features.items() if name not in taken and fits(feature)]
    for group in names:
        found = [name for name in free if plain_name(name) in group]
        if len(found) > 1:
            ask_for_column(dataset, role, f"{' and '.join(map(repr, found))} both could be")
        if found:
            return found[0]
    return None


def ask_for_column(dataset: datasets.Dataset, role: str, why: str) -> NoReturn:
    """Say that the column of a role has to be named.

    Raises:
        UsageError: always.
    """
    option = "--text-column (and --pair-column for pairs)" if role == "text" else f"--{role}-column"
    raise UsageError(
        f"cannot tell which column is the {role} ({why}); choose with {option} among {list_columns(dataset)}"
    )


def cell_kind(feature: Any) -> CellKind:
    """What a column with that `datasets` feature holds."""
    if isinstance(feature, datasets.ClassLabel):
        return "class"
    if isinstance(feature, datasets.List | datasets.LargeList):
        return "list"
    match = _DTYPES.fullmatch(feature.dtype) if isinstance(feature, datasets.Value) else None
    return cast(CellKind, (match and match.lastgroup) or "other")


def is_text(feature: Any) -> bool:
    """Whether a column with that feature holds a text a row."""
    return cell_kind(feature) == "text"


def is_id(name: str) -> bool:
    """Whether a column is named as what numbers the rows."""
    return bool(_ID.fullmatch(name) or _CAMEL_CASE_ID.fullmatch(name))


def plain_name(name: str) -> str:
    """A name in lower case without punctuation, as names are compared: "Sentence_1" is "sentence1"."""
    return re.sub(r"[\W_]", "", name.lower())


def list_columns(dataset: datasets.Dataset) -> str:
    """The columns with their types."""
    features = [(name, feature) for name, feature in dataset.features.items() if name != _NUMBERS]
    return ", ".join(f"{name} ({getattr(feature, 'dtype', None) or 'nested'})" for name, feature in features)


def column_values(dataset: datasets.Dataset, name: str) -> list[Any]:
    """A column as plain Python values."""
    return list(dataset.with_format(None)[name][:])


def filled_rows(dataset: datasets.Dataset, *names: str | None) -> NDArray[np.bool_]:
    """Which rows have something in all these columns, `(rows,)`.

    Nothing is what stands for a missing value: null, NaN, an empty list, or the -1 of a class that is withheld. An
    empty text is a text.
    """
    found = np.ones(len(dataset), dtype=np.bool_)
    for name in names:
        if name is not None:
            found &= _filled(dataset, name)
    return found


def _filled(dataset: datasets.Dataset, name: str) -> NDArray[np.bool_]:
    if name not in dataset.column_names:
        # A part of a column, as the languages of a translation are.
        dataset = dataset.flatten()
        name = next(full for full in dataset.column_names if full.rpartition(".")[2] == name)
    feature = dataset.features[name]
    found = [np.ones(0, dtype=np.bool_)]
    for table in dataset.select_columns([name]).with_format("arrow").iter(10_000):
        column = table.column(0)
        is_there = column.is_valid()
        if isinstance(feature, datasets.ClassLabel):
            is_there = pc.and_(pc.greater_equal(column, 0), pc.less(column, len(feature.names)))
        elif pa.types.is_floating(column.type):
            is_there = pc.is_finite(column)
        elif isinstance(feature, datasets.List | datasets.LargeList):
            is_there = pc.greater(pc.list_value_length(column), 0)
        found.append(pc.fill_null(is_there, False).to_numpy())
    return np.concatenate(found)


def row_texts(dataset: datasets.Dataset, columns: Columns) -> tuple[list[str], list[str] | None]:
    """The text of each row and, if there are pairs, its second text.

    Raises:
        UsageError: a row has no text (an empty one is a text).
    """
    first = column_values(dataset, columns.text)
    second = None if columns.pair is None else column_values(dataset, columns.pair)
    for name, column in ((columns.text, first), (columns.pair, second)):
        if column is not None and None in column:
            row = row_numbers(dataset)[column.index(None)]
            raise UsageError(f"row {row}: no text in column {name!r}; fill it in or drop the row")
    return first, second


def with_row_numbers(dataset: datasets.Dataset) -> datasets.Dataset:
    """The rows, which keep the numbers that they have now, from 1, whichever of them are taken later."""
    if _NUMBERS in dataset.column_names:
        return dataset
    if dataset._indices is not None:  # Otherwise `datasets` would write the rows to a file of its cache.
        dataset = dataset.flatten_indices(keep_in_memory=True)
    return dataset.add_column(_NUMBERS, np.arange(1, len(dataset) + 1))


def row_numbers(dataset: datasets.Dataset) -> list[int]:
    """The number of each row, from 1, in what was read."""
    return column_values(dataset, _NUMBERS) if _NUMBERS in dataset.column_names else list(range(1, len(dataset) + 1))


def describe_row(dataset: datasets.Dataset, columns: Columns, row: int) -> str:
    """A row by its number and, if that is one, by its text."""
    number = f"row {row_numbers(dataset.select([row]))[0] if _NUMBERS in dataset.column_names else row + 1}"
    if not is_text(dataset.features[columns.text]):
        return number
    text = " ".join(str(column_values(dataset.select([row]), columns.text)[0]).split())
    return f"{number} ({text[:37] + '...' if len(text) > 40 else text!r})"
