"""Texts that stand for a missing value, such as a blank cell or "NA".

They are made null before a task reads its rows, so that no other code knows how a missing value is spelt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from capaft.data.spool import gathered, in_dataset, spooled
from capaft.support.invisible import INVISIBLE

BLANK = frozenset({""})
"""The missing value of columns in which every other text is a value."""

# Spellings that a message lists.
_LISTED = 5


def with_nulls(rows: datasets.Dataset, missing: Mapping[str, frozenset[str]]) -> datasets.Dataset:
    """The rows with null in place of each text that stands for a missing value.

    Lists of texts have null in place of such a member, translations in place of such a language.

    Args:
        rows: the split.
        missing: by column, the texts that stand for a missing value there, without blanks around them.
    """
    for name, texts in missing.items():
        column = _column_of(rows, name)
        if column is not None:
            rows = _replaced(rows, column, pa.array(sorted(texts), pa.string()))
    return rows


def spellings(rows: datasets.Dataset, missing: Mapping[str, frozenset[str]]) -> str:
    """The texts that stand for a missing value in some rows, most frequent first, for a message; empty if none do.

    Args:
        rows: the rows as they were read.
        missing: as `with_nulls` takes it.
    """
    counts: Counter[str] = Counter()
    for name, texts in missing.items():
        column = _column_of(rows, name)
        values = [] if column is None else rows.with_format(None)[column][:]
        counts.update(text for value in values for leaf in _leaves(value) if (text := leaf.strip(INVISIBLE)) in texts)
    listed = [repr(text) if text else "blank" for text, _ in counts.most_common()]
    return ", ".join(listed[:_LISTED]) + (", ..." if len(listed) > _LISTED else "")


def _column_of(rows: datasets.Dataset, name: str) -> str | None:
    """The column of a name, which may be that of a language of a translation; None if there is no such column."""
    if name in rows.column_names:
        return name
    return next((column for column, feature in rows.features.items() if name in _fields(feature)), None)


def _fields(feature: Any) -> Any:
    return (
        feature.languages if isinstance(feature, datasets.Translation) else feature if isinstance(feature, dict) else ()
    )


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _leaves(part)


def _replaced(rows: datasets.Dataset, name: str, missing: pa.Array) -> datasets.Dataset:
    """The rows with another column if a value of it is missing; else the rows themselves."""
    if not any(_nulled(part, missing) is not part for part in _parts(rows, name)):
        return rows
    column = spooled(pa.table({name: _nulled(part, missing)}) for part in _parts(rows, name)).column(0)
    rows = gathered(rows)
    table = rows.data.table
    at = table.column_names.index(name)
    table = table.set_column(at, table.schema.field(at), column)
    return in_dataset(table, rows, str(at))


def _parts(rows: datasets.Dataset, name: str) -> Iterator[pa.Array]:
    """The values of a column, some rows at a time."""
    for table in rows.select_columns([name]).with_format("arrow").iter(10_000):
        yield from table.column(0).chunks


def _nulled(array: pa.Array, missing: pa.Array) -> pa.Array:
    """The array with null in place of the missing texts; itself if there are none, or its type holds no text."""
    kind = array.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        hits = pc.is_in(pc.utf8_trim(array, characters=INVISIBLE), value_set=missing.cast(kind))
        return pc.if_else(hits, pa.scalar(None, kind), array) if pc.any(hits).as_py() else array
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        members = array.flatten()
        nulled = _nulled(members, missing) if not pa.types.is_struct(kind.value_type) else members
        return array if nulled is members else pa.array(_regrouped(array, nulled), kind)
    if pa.types.is_struct(kind):
        fields = array.flatten()
        nulled_fields = [_nulled(field, missing) for field in fields]
        if all(new is old for new, old in zip(nulled_fields, fields, strict=True)):
            return array
        return pa.StructArray.from_arrays(nulled_fields, fields=list(kind), mask=array.is_null())
    return array


def _regrouped(array: pa.Array, members: pa.Array) -> list[Any]:
    """The lists of an array with other members, as Python values."""
    values = iter(members.to_pylist())
    sizes = pc.list_value_length(array).to_pylist()
    return [None if size is None else [next(values) for _ in range(size)] for size in sizes]
