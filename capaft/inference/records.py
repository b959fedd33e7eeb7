"""Records as they are written: what the input has of its own, and then the answer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any

import datasets
from datasets import Dataset

from capaft.tasks.base.task_answers import ERROR, Record

# Parts of an image or a recording that no record holds.
_CONTENT = ("bytes", "array")


def passed_names(names: Sequence[str], keep: Sequence[str] | None, fields: Collection[str]) -> dict[str, str]:
    """The columns of the input that records hold, each with its name there.

    A column that is called like a field of the answer is called `input_` and its name: in labelled data, `input_label`.

    Args:
        names: all columns.
        keep: those to pass on; all if None.
        fields: the fields of the answers.
    """
    kept = names if keep is None else dict.fromkeys(keep)
    taken = {*fields, ERROR}
    shown = {}
    for name in kept:
        new = name
        while new in taken:
            new = f"input_{new}"
        taken.add(new)
        shown[name] = new
    return shown


def passed_values(rows: Dataset, shown: Mapping[str, str]) -> list[Record]:
    """What records hold of the rows: values that JSON has, without the content of files."""
    if not shown:
        return [{} for _ in range(len(rows))]
    present = [name for name in shown if name in rows.column_names]
    columns = rows.select_columns(present).with_format(None)[:] if present else {}
    makers = {name: _maker(rows.features[name]) for name in present}
    return [
        {new: makers[name](columns[name][row]) if name in makers else None for name, new in shown.items()}
        for row in range(len(rows))
    ]


def _maker(feature: Any) -> Callable[[Any], Any]:
    """A function that makes values of a column into values of JSON."""
    if isinstance(feature, datasets.ClassLabel):
        return lambda value: feature.names[value] if value is not None and 0 <= value < len(feature.names) else value
    if isinstance(feature, datasets.Value) and feature.dtype.startswith(("string", "int", "bool", "float")):
        return lambda value: value
    return _plain


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        if "path" in value and value.keys() & {*_CONTENT}:
            return value["path"]
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, bytes | bytearray | memoryview):
        return None
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, Decimal | timedelta):
        return str(value)
    return value
