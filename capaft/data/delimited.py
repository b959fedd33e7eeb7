"""Read CSV, TSV and their relatives: a line of column names, then a line a row, with one character between cells."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from capaft.data.lazy import batches
from capaft.data.reading import Reading
from capaft.data.spool import Spool, StoredColumn, spooled
from capaft.data.width import TooWideError, check_names
from capaft.support.counting import agreeing
from capaft.support.errors import UsageError, one_line

Cells = dict[str, StoredColumn]
"""Columns by name, each cell as it is written."""

_WORDS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "vertical bars"}
# The first line that Excel takes for a hint and shows to nobody.
_HINT = re.compile(r"\ufeff?sep=(.)\s*", re.IGNORECASE)
_BLANK_QUOTE = re.compile(r'\s+"')
_LONGEST_CELL = 2**31 - 1


@dataclass(frozen=True)
class _Dialect:
    delimiter: str
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL
    skip_blanks: bool = False
    hinted: bool = False


@dataclass(frozen=True)
class _Rows:
    """The column names as written, the cells, and row and column of the first cell with a quote behind blanks."""

    header: list[str]
    cells: pa.Table
    quoted: tuple[int, int] | None


def read_delimited(path: Path, lines: Iterable[str], suffix: str, reading: Reading) -> Cells:
    """Read the cells of a file whose suffix tells what separates them: commas, or for `.tsv` tabs without quotes.

    A line `sep=;` tells better. Another separator is read as well if it is the only one that every line agrees on, and
    blanks between a separator and a quote are dropped.

    Raises:
        UsageError: the lines differ in their numbers of cells, a quote is not closed, or there are no rows.
    """
    usual = _Dialect("\t", csv.QUOTE_NONE) if suffix == ".tsv" else _Dialect(",")
    if hint := _HINT.fullmatch(next(iter(lines))):
        return _parsed(path, lines, _Dialect(hint[1], hinted=True), reading)
    header = next((line for line in lines if line.strip()), "").rstrip("\r\n")
    others = [_Dialect(delimiter) for delimiter in _WORDS if delimiter in header and delimiter != usual.delimiter]
    if others and usual.delimiter not in header:
        return _otherwise_separated(path, lines, usual, others, reading)
    if usual.delimiter == "\t" and all(re.fullmatch('".*"', name) for name in header.split("\t")):
        usual = replace(usual, quoting=csv.QUOTE_MINIMAL)
    return _parsed(path, lines, usual, reading)


def _otherwise_separated(
    path: Path, lines: Iterable[str], usual: _Dialect, others: Sequence[_Dialect], reading: Reading
) -> Cells:
    """Read a file whose names have a separator between them, but not the usual one.

    Raises:
        UsageError: not all lines agree on it, or they agree on several.
    """
    readable: dict[str, Cells] = {}
    for dialect in others:
        for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_NONE):
            try:
                cells = _parsed(path, lines, replace(dialect, quoting=quoting), Reading())
            except TooWideError:
                raise
            except UsageError:
                continue
            if len(cells) > 1:
                readable.setdefault(dialect.delimiter, cells)
    if len(readable) == 1:
        ((delimiter, cells),) = readable.items()
        reading.say(f"{path}: the columns are separated by {_WORDS[delimiter]}, and are read so")
        return cells
    if not readable and all(dialect.delimiter == "|" for dialect in others):
        return _parsed(path, lines, usual, reading)
    words = " or by ".join(_WORDS[delimiter] for delimiter in readable or [others[0].delimiter])
    raise UsageError(f"{path}: the columns are separated by {words}; as its suffix says, use {_WORDS[usual.delimiter]}")


def _parsed(path: Path, lines: Iterable[str], dialect: _Dialect, reading: Reading) -> Cells:
    """The cells, without the blanks that a file may have behind its separators.

    Raises:
        UsageError: see `read_delimited`.
    """
    try:
        rows = _rows(path, lines, dialect)
    except TooWideError:
        raise
    except UsageError as error:
        rows = _otherwise_read(path, lines, dialect, reading, error)
    else:
        if dialect.quoting == csv.QUOTE_MINIMAL and not dialect.delimiter.isspace():
            rows = _less_blanks(path, lines, dialect, rows)
    names = _column_names(path, rows.header)
    cells = _without_headers(path, rows, reading) if len(names) > 1 else rows.cells
    if not cells.num_rows:
        raise UsageError(f"{path}: there is a header but no rows; add rows")
    return {name: StoredColumn(cells.column(at)) for at, name in enumerate(names)}


def _without_headers(path: Path, rows: _Rows, reading: Reading) -> pa.Table:
    """The cells without rows that repeat the column names, as in files that were joined."""

    def others(part: pa.RecordBatch) -> pa.Array:
        repeats = [pc.equal(column, name) for column, name in zip(part.columns, rows.header, strict=True)]
        return pc.invert(reduce(pc.and_, repeats))

    parts = rows.cells.to_batches()
    repeated = sum(len(part) - (pc.sum(others(part)).as_py() or 0) for part in parts)
    if not repeated:
        return rows.cells
    lines_repeat = agreeing(repeated, "line repeats", "lines repeat")
    are = agreeing(repeated, "is", "are")
    reading.say(f"{path}: {repeated} further {lines_repeat} the column names, and {are} left out")
    return spooled(pa.table(part.filter(others(part))) for part in parts)


def _otherwise_read(path: Path, lines: Iterable[str], dialect: _Dialect, reading: Reading, error: UsageError) -> _Rows:
    """The rows of a file that cannot be read as it is: without blanks, or with the few faulty lines as empty rows.

    Raises:
        UsageError: neither is possible.
    """
    try:
        return _without_blanks(path, lines, dialect)
    except UsageError:
        if reading.kept_faults is None:
            raise
    faults: dict[int, str] = {}
    rows = _rows(path, lines, dialect, faults)
    # Where most lines are faulty, the file is something else.
    if 2 * len(faults) > rows.cells.num_rows:
        raise error
    reading.kept_faults.update(faults)
    return rows


def _without_blanks(path: Path, lines: Iterable[str], dialect: _Dialect) -> _Rows:
    """The rows of a file that cannot be read otherwise, because quotes follow blanks.

    Raises:
        UsageError: that is not why.
    """
    try:
        return _rows(path, lines, replace(dialect, skip_blanks=True))
    except UsageError:
        return _rows(path, lines, dialect)


def _less_blanks(path: Path, lines: Iterable[str], dialect: _Dialect, rows: _Rows) -> _Rows:
    """The rows without the blanks behind separators, if these are there throughout, or before quotes around a cell."""
    throughout = len(rows.header) > 1 and all(name[:1].isspace() for name in rows.header[1:])
    if rows.quoted is None and not throughout:
        return rows
    try:
        shorter = _rows(path, lines, replace(dialect, skip_blanks=True))
    except UsageError:
        return rows
    # A blank and a quote within quotes are text.
    return shorter if throughout or _differ(rows, shorter) else rows


def _differ(rows: _Rows, shorter: _Rows) -> bool:
    """True if the first cell with a quote behind blanks is another without blanks."""
    assert rows.quoted is not None, "else there is nothing to compare"
    row, column = rows.quoted
    return bool(rows.cells.column(column)[row] != shorter.cells.column(column)[row])


def _rows(path: Path, lines: Iterable[str], dialect: _Dialect, faults: dict[int, str] | None = None) -> _Rows:
    """The rows, which are in memory only while they are few; if `faults` is given, faulty ones are empty and named."""
    csv.field_size_limit(_LONGEST_CELL)
    # Strict, or else a quote that is never closed swallows the remaining file as one cell.
    reader = csv.reader(
        chain(["\n"], islice(lines, 1, None)) if dialect.hinted else lines,
        delimiter=dialect.delimiter,
        quoting=dialect.quoting,
        skipinitialspace=dialect.skip_blanks,
        strict=True,
    )
    try:
        header = next((row for row in reader if row), [])
        check_names(path, header)
        spool = Spool()
        done, quoted = 0, None
        for rows in batches(_checked(path, reader, len(header), dialect, faults), _characters):
            if quoted is None and (place := _quoted(rows)):
                quoted = done + place[0], place[1]
            spool.write(_part(rows, len(header)))
            done += len(rows)
    except csv.Error as error:
        raise UsageError(f"{path}: line {reader.line_num} is malformed ({one_line(error)}); correct it") from None
    return _Rows(header, spool.table() if done else _part([], len(header)), quoted)


def _checked(
    path: Path, reader: Any, width: int, dialect: _Dialect, faults: dict[int, str] | None
) -> Iterator[list[str]]:
    """The rows of a reader, which all have as many cells as the header.

    Raises:
        UsageError: one has not, and no faults are kept.
    """
    number = 0
    for row in reader:
        if len(row) == width:
            yield row
        elif row:
            advice = "check its tabs" if dialect.delimiter == "\t" else f"quote text that has {_word(dialect)}"
            fault = f"line {reader.line_num} has {len(row)} field(s), the header has {width}; {advice}"
            if faults is None:
                raise UsageError(f"{path}: {fault}")
            faults[number] = fault
            yield [""] * width
        number += bool(row)


def _characters(row: list[str]) -> int:
    return sum(map(len, row))


def _part(rows: Sequence[list[str]], width: int) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else [()] * width
    return pa.table([pa.array(column, pa.string()) for column in columns], names=list(map(str, range(width))))


def _quoted(rows: Sequence[list[str]]) -> tuple[int, int] | None:
    """The first cell that begins with blanks and a quote."""
    places = ((r, c) for r, row in enumerate(rows) for c, cell in enumerate(row) if cell[:1].isspace())
    return next(((r, c) for r, c in places if _BLANK_QUOTE.match(rows[r][c])), None)


def _word(dialect: _Dialect) -> str:
    return _WORDS.get(dialect.delimiter, repr(dialect.delimiter))


def _column_names(path: Path, header: Sequence[str]) -> list[str]:
    # pandas writes its index under a blank name, and reads that back under this one.
    names = [name.strip() or f"Unnamed: {position}" for position, name in enumerate(header)]
    repeated = next((name for name, count in Counter(names).items() if count > 1), None)
    if repeated is not None:
        raise UsageError(
            f"{path}: the header names column {repeated!r} twice; rename one, or add names if there are none"
        )
    if not names:
        raise UsageError(f"{path}: the file is empty")
    return names
