"""Data sets that a program hands over, as splits of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
from datasets import Dataset, IterableDataset, IterableDatasetDict

from capaft.data.splits import TRAIN
from capaft.inference.values import rows_of_values
from capaft.support.errors import UsageError, one_line

_FORMS = "a name, a path, a datasets.Dataset, a DatasetDict, a list of dicts, or a pandas.DataFrame"
_UNREADABLE = (pa.ArrowException, ValueError, TypeError, OverflowError)


def splits_of(data: Any) -> dict[str, Dataset]:
    """The splits of a data set that a program hands over; rows without splits are the training rows.

    Args:
        data: a `datasets.Dataset`, a list of records, a data frame of pandas or a table of pyarrow; a mapping from
            names of splits to such; or a mapping from columns to their values.

    Raises:
        UsageError: it is nothing of the kind, or has no rows.
    """
    if isinstance(data, Mapping) and data and all(_are_rows(rows) for rows in data.values()):
        return {str(name): _rows(rows) for name, rows in data.items()}
    return {TRAIN: _rows(data)}


def is_table(value: Any) -> bool:
    """True for a `datasets.Dataset`, a data frame of pandas and a table of pyarrow."""
    return isinstance(value, Dataset | pa.Table) or hasattr(value, "to_records")


def rows_of_table(table: Any) -> Dataset:
    """The rows of a table; see `is_table`.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        return _read_table(table)
    except _UNREADABLE as error:
        raise UsageError(f"these rows cannot be read ({one_line(error)}); pass {_FORMS}") from None


def _are_rows(value: Any) -> bool:
    """True if a value is a whole split, and not a column."""
    if is_table(value):
        return True
    return isinstance(value, Sequence) and bool(value) and all(isinstance(row, Mapping) for row in value)


def _rows(data: Any) -> Dataset:
    try:
        rows = _read(data)
    except _UNREADABLE as error:
        raise UsageError(f"--data: these rows cannot be read ({one_line(error)}); pass {_FORMS}") from None
    if len(rows) == 0 or not rows.column_names:
        raise UsageError("--data: there are no rows in it")
    return rows


def _read_table(table: Any) -> Dataset:
    if isinstance(table, Dataset):
        # A column can be formatted as tensors, or be read by a function.
        return table.with_format(None)
    return Dataset(table) if isinstance(table, pa.Table) else Dataset.from_pandas(table, preserve_index=False)


def _read(data: Any) -> Dataset:
    if is_table(data):
        return _read_table(data)
    if isinstance(data, IterableDataset | IterableDatasetDict):
        raise UsageError("--data: a streamed data set has no end to shuffle to; pass Dataset.from_generator(...) of it")
    if isinstance(data, Mapping):
        return Dataset.from_dict({str(name): list(values) for name, values in data.items()})
    if isinstance(data, Sequence) and all(isinstance(row, Mapping) for row in data):
        if not data:
            raise UsageError("--data: there are no rows in it")
        return rows_of_values(data, ("text", None)).rows
    raise UsageError(f"--data must be {_FORMS}, got {type(data).__name__}")
