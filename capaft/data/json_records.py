"""Read JSON and JSON lines to records, one a row.

Lines are parsed again whenever their records are read, so that no more of them is in memory than a few; a document is
in memory as a whole.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from capaft.data.json_shapes import records_in
from capaft.data.reading import Reading
from capaft.support.counting import agreeing, counted
from capaft.support.errors import UsageError, one_line
from capaft.support.faults import leave_out

Record = dict[str, Any]

_ADVICE = "give one record a line or one list of records"
# Half of a character that needs two codes of UTF-16: no text, but what is left where one was cut in two.
_SURROGATE = re.compile("[\ud800-\udfff]")
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_MALFORMED = (ValueError, RecursionError)


class _LineRecords(Collection[Record]):
    """The records of lines that hold one each; other lines are passed over, or stand for an empty record."""

    def __init__(self, lines: Iterable[str], count: int, *, repairs: bool = False, keeps: bool = False) -> None:
        self.lines = lines
        self.keeps = keeps
        self._count = count
        self._repairs = repairs

    def __len__(self) -> int:
        return self._count

    def __contains__(self, record: object) -> bool:
        return any(record == other for other in self)

    def __iter__(self) -> Iterator[Record]:
        for line in filter(str.strip, self.lines):
            record = None
            with contextlib.suppress(*_MALFORMED):
                record = json.loads(line)
            if isinstance(record, dict):
                yield _repaired(record) if self._repairs else record
            elif self.keeps:
                yield {}


def read_json_records(path: Path, lines: Iterable[str], suffix: str, reading: Reading) -> Collection[Record]:
    """Read one record a line, one list of records, or a document of another usual shape.

    A few lines that are not records are left out, but not a last line that is cut off: more than that is missing. A
    half of a character is replaced by U+FFFD.

    Raises:
        UsageError: it is not JSON, has none of these shapes, or many lines are not records.
    """
    first, *others = islice((line for line in lines if line.strip()), 2)
    is_list = first.lstrip().startswith("[")
    # What ends in the first line is no document that goes on.
    is_document = not others or _is_malformed(first)
    if is_document and (is_list or suffix == ".json" or _is_malformed(first)):
        whole = "".join(lines)
        records = _read_document(path, whole, is_list, bool(others))
        if records is not None:
            return _with_repairs(path, records, bool(_ESCAPED_SURROGATE.search(whole)), reading)
    return _read_lines(path, lines, reading)


def _read_document(path: Path, whole: str, is_list: bool, has_lines: bool) -> list[Record] | None:
    """The records of a file that is one document; None if its lines are to be read."""
    try:
        document = json.loads(whole)
    except _MALFORMED as error:
        if is_list:
            raise UsageError(f"{path}: the list is not JSON ({one_line(error)}); {_ADVICE}") from None
        return None
    records = None if document is None else records_in(path, document)
    if records is None and document is not None and has_lines:
        raise UsageError(f"{path}: this is a single record; {_ADVICE}")
    return records


def _is_malformed(line: str) -> bool:
    try:
        json.loads(line)
    except _MALFORMED:
        return True
    return False


def _read_lines(path: Path, lines: Iterable[str], reading: Reading) -> Collection[Record]:
    count = filled = 0
    faults: list[str] = []
    kept = reading.kept_faults
    has_halves = False
    cut_off: int | None = None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        filled += 1
        cut_off = None
        try:
            record = json.loads(line)
        except _MALFORMED as error:
            faults.append(f"line {number} is not JSON ({one_line(error)})")
            cut_off = number if _is_cut_off(line, error) else None
            if kept is not None:
                kept[filled - 1] = faults[-1]
            continue
        if isinstance(record, dict):
            count += 1
            has_halves = has_halves or ("\\u" in line and bool(_ESCAPED_SURROGATE.search(line)))
        else:
            faults.append(f'line {number} is not a record such as {{"text": "...", "label": 0}}')
            if kept is not None:
                kept[filled - 1] = faults[-1]
    if cut_off is not None and count and kept is None:
        raise UsageError(
            f"{path}: line {cut_off} is not JSON: this last line is cut off, so the file is incomplete; get it again, "
            "or delete the line"
        )
    if faults and not count:
        raise UsageError(f"{path}: {faults[0]}; {_ADVICE}")
    if faults and kept is None:
        leave_out(faults, filled, f"lines of {path}", strict=reading.strict, say=reading.say)
    keeps = kept is not None
    return _with_repairs(path, _LineRecords(lines, filled if keeps else count, keeps=keeps), has_halves, reading)


def _is_cut_off(line: str, error: Exception) -> bool:
    """True if a line is well-formed as far as it goes."""
    at_end = isinstance(error, json.JSONDecodeError) and error.pos >= len(line.rstrip())
    return at_end or "Unterminated string" in str(error)


def _with_repairs(path: Path, records: Collection[Record], has_halves: bool, reading: Reading) -> Collection[Record]:
    """The records with U+FFFD for each half of a character, if there may be any."""
    if not has_halves:
        return records
    rows = 0
    first: list[int] = []
    for number, record in enumerate(records, start=1):
        if _repaired(record) != record:
            rows += 1
            first = [*first, number][:5]
    if not rows:
        return records
    listed = ", ".join(map(str, first)) + (", ..." if rows > len(first) else "")
    have = agreeing(rows, "has", "have")
    reading.say(
        f"{path}: {rows} of {counted(len(records), 'row')} {have} half a character "
        f"(an unpaired surrogate like \\ud83d), which becomes U+FFFD: row {listed}"
    )
    if isinstance(records, _LineRecords):
        return _LineRecords(records.lines, len(records), repairs=True, keeps=records.keeps)
    return list(map(_repaired, records))


def _repaired(record: Record) -> Record:
    return _map_text(record, whole_characters)


def whole_characters(text: str) -> str:
    """A text with U+FFFD for each half of a character."""
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


def _map_text(value: Any, change: Callable[[str], str]) -> Any:
    """A parsed value with each of its texts changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_map_text(item, change) for item in value]
    if isinstance(value, dict):
        return {change(name): _map_text(item, change) for name, item in value.items()}
    return value
