"""Rows from a stream of lines, answered while it goes on: those that are there now, without waiting for its end."""

from __future__ import annotations

import codecs
import dataclasses
import json
import queue
import threading
import time
from collections.abc import Iterator, Mapping
from itertools import compress, count
from typing import Any, BinaryIO

import datasets
import pyarrow as pa
from datasets import Dataset

from capaft.data.load import Say
from capaft.inference.rows import WINDOW, RowSource, Window, find_inputs, input_names
from capaft.inference.values import ValueRows, rows_of_values
from capaft.support.errors import UsageError
from capaft.support.listing import listed
from capaft.training.record.saved_run import SavedRun

WAIT = 0.05
"""Seconds to wait for more lines after the first, so that those that are written together are answered together."""


def line_source(saved: SavedRun, stream: BinaryIO, say: Say) -> RowSource | None:
    """The rows in a stream; None if it ends before the first line.

    A line is a text; where the training had two inputs, both with a tab between them; for images and recordings the
    path of a file. If the first line is a JSON object with the first input's column, all lines are records.

    Args:
        saved: the opened run.
        stream: the lines, in UTF-8; blank ones are passed over.
        say: called with a line about columns that are not those of the training.
    """
    windows = _windows(saved, stream)
    first = next(windows, None)
    if first is None:
        return None
    rows, columns = find_inputs(saved, first.rows, {}, say)
    features = {name: rows.features[name] for name in (columns.text, columns.pair, *columns.choices) if name}
    names = tuple(rows.column_names)

    def alike() -> Iterator[Window]:
        yield dataclasses.replace(first, rows=rows)
        known = {*names}
        for window in windows:
            if further := [name for name in window.rows.column_names if name not in known]:
                known |= {*further}
                say(f"{listed(further)}: the first lines have no such column, so the records do not either")
            yield _with_inputs(window, features)

    return RowSource(columns, alike(), names)


def _windows(saved: SavedRun, stream: BinaryIO) -> Iterator[Window]:
    names = input_names(saved)
    medium = getattr(saved.task, "medium", None)
    number, holds_records = 1, False
    for lines in _ready(stream):
        if number == 1:
            holds_records = names[0] in (_record(lines[0]) or {})
        values, faults = _values(lines, holds_records, paired=names[1] is not None)
        for start, (rows, unreadable) in _tables(values, names, medium):
            wrong = {at - start: faults[at] for at in range(start, start + len(rows)) if at in faults}
            yield Window(rows, number + start, wrong | unreadable)
        number += len(lines)


def _tables(
    values: list[object], names: tuple[str, str | None], medium: str | None, start: int = 0
) -> Iterator[tuple[int, ValueRows]]:
    """The rows of values, each table with the position of its first: several where columns have no type in common."""
    try:
        tables = [(start, rows_of_values(values, names, medium))]
    except UsageError as error:
        if len(values) == 1:
            yield start, ValueRows(rows_of_values([{names[0]: None}], names).rows, {0: str(error)})
            return
        tables = []
    yield from tables
    if not tables:
        middle = len(values) // 2
        yield from _tables(values[:middle], names, medium, start)
        yield from _tables(values[middle:], names, medium, start + middle)


def _with_inputs(window: Window, features: Mapping[str, Any]) -> Window:
    """A window whose inputs have these types; of rows with values that cannot have them, that is what is wrong."""
    rows, faults = window.rows, dict(window.faults)
    for name, feature in features.items():
        if rows.features.get(name) == feature:
            continue
        if name in rows.column_names:
            try:
                rows = rows.cast_column(name, feature)
                continue
            except (pa.ArrowException, ValueError, TypeError):
                filled = rows.data.column(name).is_valid().to_pylist()
                reason = f"{name!r} is not of the type that it has in the first line"
                faults |= dict.fromkeys(compress(count(), filled), reason)
        rows = _without_values(rows, name, feature)
    return dataclasses.replace(window, rows=rows, faults=faults)


def _without_values(rows: Dataset, name: str, feature: Any) -> Dataset:
    """The rows with nothing in a column of that name and type."""
    features = datasets.Features({**rows.features, name: feature})
    columns = {other: rows.data.column(other) for other in rows.column_names}
    columns[name] = pa.nulls(len(rows), features.arrow_schema.field(name).type)
    return Dataset(pa.table(columns), datasets.DatasetInfo(features=features))


def _values(lines: list[bytes], holds_records: bool, *, paired: bool) -> tuple[list[object], dict[int, str]]:
    values: list[object] = []
    faults: dict[int, str] = {}
    for at, line in enumerate(lines):
        try:
            text = line.decode()
        except UnicodeDecodeError:
            faults[at] = "the line is not UTF-8"
            values.append({} if holds_records else None)
            continue
        if not holds_records:
            values.append(tuple(text.split("\t", 1)) if paired and "\t" in text else text)
            continue
        record = _record(line)
        if record is None:
            faults[at] = "the line is not a JSON object, as the first line is"
        values.append(record or {})
    return values, faults


def _record(line: bytes) -> dict[str, object] | None:
    """The object in a line of JSON; None if it holds none."""
    if not line.lstrip().startswith(b"{"):
        return None
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _ready(stream: BinaryIO) -> Iterator[list[bytes]]:
    """The lines that are there, at least one and at most a window, as soon as they are."""
    waiting: queue.Queue[bytes | None] = queue.Queue(2 * WINDOW)
    threading.Thread(target=_read, args=(stream, waiting), daemon=True).start()
    is_open = True
    while is_open and (line := waiting.get()) is not None:
        lines, until = [line], time.monotonic() + WAIT
        while len(lines) < WINDOW:
            try:
                following = waiting.get(timeout=max(until - time.monotonic(), 0.0))
            except queue.Empty:
                break
            if following is None:
                is_open = False
                break
            lines.append(following)
        yield lines


def _read(stream: BinaryIO, waiting: queue.Queue[bytes | None]) -> None:
    try:
        for at, line in enumerate(stream):
            text = (line if at else line.removeprefix(codecs.BOM_UTF8)).rstrip(b"\r\n")
            if text.strip():
                waiting.put(text)
    except (OSError, ValueError):
        # The stream was closed while it was read.
        pass
    finally:
        waiting.put(None)
