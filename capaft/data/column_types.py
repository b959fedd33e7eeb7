"""Give the values of columns, some rows at a time, the type that they have together.

A type depends on all values of a column, which are therefore read once to learn it, and again to build the column. As
in CSV, plain values of several types become text, and so do numbers with too many digits. Lists of records, such as
messages, stay JSON: one type for all would give each the fields of every other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from capaft.data.lazy import ROWS, batches
from capaft.data.spool import Spool
from capaft.data.width import TooWideError, ValueWidth
from capaft.support.errors import UsageError, one_line

_NESTED = {"list", "dict"}
_UNFIT = (ValueError, TypeError, OverflowError, pa.ArrowException)

Part = dict[str, list[Any]]
"""The values of some rows by column."""


def record_parts(records: Iterable[Mapping[str, Any]], names: Collection[str]) -> Iterator[Part]:
    """Some records at a time, by their keys; None for a key that one has not."""
    for some in batches(records, _characters):
        yield {name: [record.get(name) for record in some] for name in names}


def column_parts(columns: Mapping[str, Iterable[Any]]) -> Iterator[Part]:
    """Some rows of columns at a time."""
    streams = {name: iter(values) for name, values in columns.items()}
    while any(part := {name: list(islice(stream, ROWS)) for name, stream in streams.items()}):
        if not any(part.values()):
            return
        yield part


def typed_table(path: Path, parts: Callable[[], Iterator[Part]], names: Collection[str], rows: int) -> pa.Table:
    """The table of these values.

    Args:
        path: the file, for messages.
        parts: reads the values from the first row on, at each call.
        names: the columns.
        rows: number of rows.

    Raises:
        UsageError: the values of a column have no type in common, or are records of too many keys.
    """
    if not names:
        return pa.table({})
    columns = {name: _Outline(path, name, rows) for name in names}
    for part in parts():
        for name, values in part.items():
            columns[name].add(values)
    for column in columns.values():
        column.check_width()
    while True:
        spool = Spool()
        unfit: set[str] = set()
        for part in parts():
            arrays = {}
            for name in names:
                if name in unfit:
                    continue
                try:
                    arrays[name] = columns[name].array(part[name])
                except _UNFIT as error:
                    columns[name].give_way(error)
                    unfit.add(name)
            if not unfit:
                spool.write(pa.table(arrays))
        if not unfit:
            return spool.table()


class _Outline:
    """What the values of a column are, as far as they were read."""

    def __init__(self, path: Path, name: str, rows: int) -> None:
        self._path = path
        self._name = name
        self._width = ValueWidth(path, name, rows)
        self._too_wide: TooWideError | None = None
        self._kinds: set[str] = set()
        # Lists of records, as far as all values are lists and all in them are records.
        self._may_be_records = True
        self._has_records = False
        self._plain = _CommonType()
        self._without_nan = _CommonType()
        self._as = self._as_they_are

    def add(self, values: list[Any]) -> None:
        """Take note of further values."""
        filled = [value for value in values if not (value is None or _is_nan(value))]
        kinds = {type(value).__name__ for value in filled}
        self._kinds |= kinds
        if self._may_be_records:
            self._may_be_records = all(
                isinstance(value, list) and all(isinstance(record, dict) for record in value)
                for value in values
                if value is not None
            )
            self._has_records = self._has_records or any(filled)
        if self._too_wide is None:
            try:
                self._width.check(values)
            except TooWideError as error:
                self._too_wide = error
        self._plain.add(values)
        self._without_nan.add(list(map(without_nan, filled)) if kinds & _NESTED else filled)

    @property
    def _are_records(self) -> bool:
        return self._may_be_records and self._has_records

    def check_width(self) -> None:
        """Raise the error that the values are too wide for a column, if they are."""
        if self._too_wide is not None and not self._are_records:
            raise self._too_wide

    def array(self, values: list[Any]) -> pa.Array:
        """Values in the type that all have, as far as is known."""
        return _records(list(map(without_nan, values))) if self._are_records else self._as(values)

    def give_way(self, error: Exception) -> None:
        """Take another type, since the last one does not fit all values.

        Raises:
            UsageError: there is none.
        """
        if self._are_records or self._as != self._as_they_are:
            kinds = sorted(self._kinds)
            reason = f"it mixes {' and '.join(kinds)}" if len(kinds) > 1 else one_line(error)
            raise UsageError(
                f"{self._path}: column {self._name!r} cannot be read as one type ({reason}); give its values one type"
            ) from None
        # NaN, which pandas writes for a missing value, is a number only among numbers.
        self._as = self._as_nested if self._kinds & _NESTED else _as_text

    def _as_they_are(self, values: list[Any]) -> pa.Array:
        return pa.array(values, self._plain.type)

    def _as_nested(self, values: list[Any]) -> pa.Array:
        return pa.array(list(map(without_nan, values)), self._without_nan.type)


class _CommonType:
    """The type that pyarrow infers for all values, of which it sees some at a time."""

    def __init__(self) -> None:
        self._types: dict[pa.DataType, None] = {}
        self._error: Exception | None = None

    def add(self, values: list[Any]) -> None:
        """Take note of further values."""
        try:
            self._types[pa.infer_type(values)] = None
        except _UNFIT as error:
            self._error = error

    @property
    def type(self) -> pa.DataType:
        """The type.

        Raises:
            pa.ArrowException: there is none; or another error of pyarrow.
        """
        if self._error is not None:
            raise self._error
        return pa.infer_type([_example(kind) for kind in self._types])


def _example(kind: pa.DataType) -> Any:
    """A value that has a type."""
    if pa.types.is_list(kind):
        return [_example(kind.value_type)]
    if pa.types.is_struct(kind):
        return {field.name: _example(field.type) for field in kind}
    if pa.types.is_null(kind):
        return None
    return {pa.bool_(): True, pa.int64(): 1, pa.float64(): 1.5}.get(kind, "")


def _as_text(values: list[Any]) -> pa.Array:
    plain = map(without_nan, values)
    texts = (value if value is None or isinstance(value, str) else json.dumps(value) for value in plain)
    return pa.array(texts, pa.string())


def _records(values: list[Any]) -> pa.Array:
    texts = [value and [json.dumps(record, ensure_ascii=False) for record in value] for value in values]
    return pa.array(texts, pa.list_(pa.string())).cast(pa.list_(pa.json_()))


def without_nan(value: Any) -> Any:
    """A JSON value with null for every NaN."""
    if isinstance(value, list):
        return list(map(without_nan, value))
    if isinstance(value, dict):
        return {name: without_nan(part) for name, part in value.items()}
    return None if _is_nan(value) else value


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and value != value


def _characters(record: Mapping[str, Any]) -> int:
    """About as many characters as a record has."""
    return sum(map(_size, record.values()))


def _size(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, list):
        return sum(map(_size, value))
    return _characters(value) if isinstance(value, dict) else 1
