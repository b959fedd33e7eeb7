"""Limits on the columns of a table, checked before any is built: the memory for a table grows with rows times columns.

Data with many columns is seldom meant so: the rows and columns are swapped, or the keys of records are values.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import datasets
import pyarrow as pa

from capaft.support.errors import UsageError

MOST_COLUMNS = 2000
"""Columns of a table, the fields of nested ones included."""
MOST_LEVELS = 32
"""Lists and records within one another in a value."""
LONGEST_NAME = 2**14
"""Characters of a column's name."""
MOST_CLASSES = 100_000
"""Names of classes that a column declares."""
# Cells of a table of records that may be empty, and how many there may be to one that is not.
_EMPTY_CELLS = 2**24
_EMPTY_SHARE = 50


class TooWideError(UsageError):
    """Data has too many columns, or a name or a value that is none."""


def check_names(source: object, names: Collection[str]) -> None:
    """Make sure that a table has not too many columns, and none with an endless name.

    Raises:
        TooWideError: it does.
    """
    _check_number(source, len(names))
    longest = max(map(len, names), default=0)
    if longest > LONGEST_NAME:
        raise TooWideError(
            f"{source}: a column has a name of {longest:,} characters, and the longest may have {LONGEST_NAME:,}; is a "
            "line of names missing?"
        )


def check_records(source: object, records: Collection[Mapping[str, Any]]) -> dict[str, None]:
    """The keys of records, in their order, which are not too many for a table with a column each.

    Raises:
        TooWideError: there are too many, or nearly all cells of the table would be empty.
    """
    names: dict[str, None] = {}
    cells = 0
    for record in records:
        cells += len(record)
        names.update(dict.fromkeys(record))
        if len(names) > MOST_COLUMNS:
            number = len(names.keys() | {name for record in records for name in record})
            _check_number(source, number)
    check_names(source, names)
    if len(names) * len(records) > max(_EMPTY_CELLS, _EMPTY_SHARE * cells):
        raise TooWideError(
            f"{source}: the {len(records):,} rows have {len(names):,} different keys, and each row only a few of them; "
            "give all rows the same keys"
        )
    return names


class ValueWidth:
    """The keys of the records in a column, which may be nested.

    Args:
        source: the file, for messages.
        name: the column.
        rows: number of its values.
    """

    def __init__(self, source: object, name: str, rows: int) -> None:
        self._source = source
        self._name = name
        self._rows = rows
        self._keys: set[tuple[str, ...]] = set()

    def check(self, values: Sequence[Any]) -> None:
        """Make sure that further values are not nested too deeply, and that all have not too many different keys.

        Raises:
            TooWideError: they are, or they have.
        """
        keys = self._keys
        open_values: list[tuple[Any, tuple[str, ...], int]] = [(value, (), 0) for value in values if _is_nested(value)]
        while open_values:
            value, path, level = open_values.pop()
            if level >= MOST_LEVELS:
                raise TooWideError(
                    f"{self._source}: column {self._name!r} has more than {MOST_LEVELS} lists or records within one "
                    "another; drop it"
                )
            if isinstance(value, dict):
                keys.update((*path, key) for key in value)
                open_values += [(part, (*path, key), level + 1) for key, part in value.items() if _is_nested(part)]
            else:
                open_values += [(part, (*path, ""), level + 1) for part in value if _is_nested(part)]
            if len(keys) > MOST_COLUMNS or len(keys) * self._rows > _EMPTY_SHARE * _EMPTY_CELLS:
                raise TooWideError(
                    f"{self._source}: the records in column {self._name!r} have more than {len(keys) - 1:,} different "
                    "keys; drop the column, or write each record as text"
                )


def check_schema(source: object, schema: pa.Schema) -> None:
    """Make sure that a table of that schema has not too many columns, and none that is nested too deeply.

    Raises:
        TooWideError: it does, or one is.
    """
    check_names(source, schema.names)
    number = 0
    open_types = [(field, 0) for field in schema]
    while open_types:
        field, level = open_types.pop()
        if level > MOST_LEVELS:
            raise TooWideError(
                f"{source}: a column has more than {MOST_LEVELS} lists or records within one another; drop it"
            )
        number += 1
        inner = [field.type.field(at) for at in range(field.type.num_fields)]
        open_types += [(part, level + 1) for part in inner]
    _check_number(source, number)


def check_classes(source: object, features: datasets.Features) -> None:
    """Make sure that no column declares too many classes, since each selection of rows copies their names.

    Raises:
        TooWideError: one does.
    """
    for name, feature in features.items():
        inner = getattr(feature, "feature", feature)
        number = len(inner.names) if isinstance(inner, datasets.ClassLabel) else 0
        if number > MOST_CLASSES:
            raise TooWideError(
                f"{source}: column {name!r} declares {number:,} classes, and capaft takes at most {MOST_CLASSES:,}; "
                "drop the names that do not occur"
            )


def _is_nested(value: Any) -> bool:
    return isinstance(value, list | dict) and bool(value)


def too_wide(source: object, number: int) -> TooWideError:
    """The error for data of too many columns."""
    return TooWideError(
        f"{source}: this has {number:,} columns, and capaft reads at most {MOST_COLUMNS:,}; keep the text and the "
        "label, give several labels of a row as one list, and check that rows and columns are not swapped"
    )


def _check_number(source: object, number: int) -> None:
    if number > MOST_COLUMNS:
        raise too_wide(source, number)
