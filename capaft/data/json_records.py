"""Read JSON and JSON lines to records, one a row."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Sequence
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


def read_json_records(path: Path, lines: Sequence[str], suffix: str, reading: Reading) -> list[Record]:
    """Read one record a line, one list of records, or a document of another usual shape.

    A few lines that are not records are left out, but not a last line that is cut off: more than that is missing. A
    half of a character is replaced by U+FFFD.

    Raises:
        UsageError: it is not JSON, has none of these shapes, or many lines are not records.
    """
    whole = "".join(lines)
    filled = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    document = None
    if whole.lstrip().startswith("["):
        try:
            document = json.loads(whole)
        except _MALFORMED as error:
            # One line may be a list where others are records.
            if len(filled) == 1 or _is_malformed(filled[0][1]):
                raise UsageError(f"{path}: the list is not JSON ({one_line(error)}); {_ADVICE}") from None
    elif suffix == ".json" or _is_malformed(filled[0][1]):
        with contextlib.suppress(*_MALFORMED):
            document = json.loads(whole)
    records = None if document is None else records_in(path, document)
    if records is None and document is not None and len(filled) > 1:
        raise UsageError(f"{path}: this is a single record; {_ADVICE}")
    if records is None:
        records = _read_lines(path, filled, reading)
    return _without_halves(path, whole, records, reading)


def _is_malformed(line: str) -> bool:
    try:
        json.loads(line)
    except _MALFORMED:
        return True
    return False


def _read_lines(path: Path, lines: Sequence[tuple[int, str]], reading: Reading) -> list[Record]:
    records: list[Record] = []
    faults: list[str] = []
    for number, line in lines:
        try:
            record = json.loads(line)
        except _MALFORMED as error:
            faults.append(f"line {number} is not JSON ({one_line(error)})")
            if number == lines[-1][0] and _is_cut_off(line, error) and records:
                raise UsageError(
                    f"{path}: line {number} is not JSON: this last line is cut off, so the file is incomplete; get it "
                    "again, or delete the line"
                ) from None
            continue
        if isinstance(record, dict):
            records.append(record)
        else:
            faults.append(f'line {number} is not a record such as {{"text": "...", "label": 0}}')
    if faults and not records:
        raise UsageError(f"{path}: {faults[0]}; {_ADVICE}")
    if faults:
        leave_out(faults, len(lines), f"lines of {path}", strict=reading.strict, say=reading.say)
    return records


def _is_cut_off(line: str, error: Exception) -> bool:
    """True if a line is well-formed as far as it goes."""
    at_end = isinstance(error, json.JSONDecodeError) and error.pos >= len(line.rstrip())
    return at_end or "Unterminated string" in str(error)


def _without_halves(path: Path, written: str, records: list[Record], reading: Reading) -> list[Record]:
    """The records with U+FFFD for each half of a character."""
    if not _ESCAPED_SURROGATE.search(written):
        return records
    repaired = [_map_text(record, lambda text: _SURROGATE.sub("\ufffd", text)) for record in records]
    rows = [number for number, pair in enumerate(zip(records, repaired, strict=True), start=1) if pair[0] != pair[1]]
    if rows:
        first = ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
        have = agreeing(len(rows), "has", "have")
        reading.say(
            f"{path}: {len(rows)} of {counted(len(records), 'row')} {have} half a character "
            f"(an unpaired surrogate like \\ud83d), which becomes U+FFFD: row {first}"
        )
    return repaired


def _map_text(value: Any, change: Callable[[str], str]) -> Any:
    """A parsed value with each of its texts changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_map_text(item, change) for item in value]
    if isinstance(value, dict):
        return {change(name): _map_text(item, change) for name, item in value.items()}
    return value
