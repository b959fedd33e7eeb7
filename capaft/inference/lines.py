"""Rows from a stream of lines, answered while it goes on: those that are there now, without waiting for its end."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Iterator
from itertools import chain
from typing import BinaryIO

from datasets import Dataset

from capaft.data.load import Say
from capaft.inference.rows import WINDOW, RowSource, Window, find_inputs, input_names, takes_pairs
from capaft.inference.values import rows_of_values
from capaft.tasks.language.generation import Generation
from capaft.training.record.saved_run import SavedRun

WAIT = 0.05
"""Seconds to wait for more lines after the first, so that those that are written together are answered together."""


def line_source(saved: SavedRun, stream: BinaryIO, say: Say) -> RowSource | None:
    """The rows in a stream; None if it ends before the first line.

    A line is a text; where the training had two inputs, both with a tab between them, and so where nobody knows what it
    had and the first line has a tab; for images and recordings the path of a file. If the first line is a JSON object
    with the first input's column, all lines are records.

    Args:
        saved: the opened run.
        stream: the lines, in UTF-8; blank ones are passed over.
        say: called with a line about columns that are not those of the training.
    """
    windows = _windows(saved, stream)
    first = next(windows, None)
    if first is None:
        return None
    _, columns = find_inputs(saved, first.rows, {}, say)
    return RowSource(columns, chain([first], windows), tuple(first.rows.column_names))


def _windows(saved: SavedRun, stream: BinaryIO) -> Iterator[Window]:
    names = input_names(saved)
    medium = getattr(saved.task, "medium", None)
    number, holds_records = 1, False
    for lines in _ready(stream):
        if number == 1:
            holds_records = names[0] in (_record(lines[0]) or {})
            if saved.config is None and not holds_records and b"\t" in lines[0]:
                names = _paired_names(saved)
        values, faults = _values(lines, holds_records, paired=names[1] is not None)
        rows, unreadable = rows_of_values(values, names, medium)
        yield Window(rows, number, faults | unreadable)
        number += len(lines)


def _paired_names(saved: SavedRun) -> tuple[str, str | None]:
    """The columns of lines with a tab: two, unless it is a part of the text for this task."""
    text, pair = input_names(saved, paired=True)
    assert pair is not None
    rows = Dataset.from_dict({text: [""], pair: [""]})
    is_pair = not isinstance(saved.task, Generation) and takes_pairs(saved.task, rows, text, pair)
    return text, pair if is_pair else None


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
    if not line.startswith(b"{"):
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
        for line in stream:
            text = line.rstrip(b"\r\n")
            if text.strip():
                waiting.put(text)
    except (OSError, ValueError):
        # The stream was closed while it was read.
        pass
    finally:
        waiting.put(None)
