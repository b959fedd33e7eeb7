"""Read CSV, TSV and their relatives: a line of column names, then a line a row, with one character between cells."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from capaft.data.reading import Reading
from capaft.data.width import TooWideError, check_names
from capaft.support.counting import agreeing
from capaft.support.errors import UsageError, one_line

Cells = dict[str, tuple[str, ...]]
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


def read_delimited(path: Path, lines: Sequence[str], suffix: str, reading: Reading) -> Cells:
    """Read the cells of a file whose suffix tells what separates them: commas, or for `.tsv` tabs without quotes.

    A line `sep=;` tells better. Another separator is read as well if it is the only one that every line agrees on, and
    blanks between a separator and a quote are dropped.

    Raises:
        UsageError: the lines differ in their numbers of cells, a quote is not closed, or there are no rows.
    """
    usual = _Dialect("\t", csv.QUOTE_NONE) if suffix == ".tsv" else _Dialect(",")
    if hint := _HINT.fullmatch(lines[0]):
        return _parsed(path, ["\n", *lines[1:]], _Dialect(hint[1]), reading)
    header = next((line for line in lines if line.strip()), "").rstrip("\r\n")
    others = [_Dialect(delimiter) for delimiter in _WORDS if delimiter in header and delimiter != usual.delimiter]
    if others and usual.delimiter not in header:
        return _otherwise_separated(path, lines, usual, others, reading)
    if usual.delimiter == "\t" and all(re.fullmatch('".*"', name) for name in header.split("\t")):
        usual = replace(usual, quoting=csv.QUOTE_MINIMAL)
    return _parsed(path, lines, usual, reading)


def _otherwise_separated(
    path: Path, lines: Sequence[str], usual: _Dialect, others: Sequence[_Dialect], reading: Reading
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


def _parsed(path: Path, lines: Sequence[str], dialect: _Dialect, reading: Reading) -> Cells:
    """The cells, without the blanks that a file may have behind its separators.

    Raises:
        UsageError: see `read_delimited`.
    """
    try:
        header, rows = _rows(path, lines, dialect)
    except TooWideError:
        raise
    except UsageError:
        header, rows = _without_blanks(path, lines, dialect)
    else:
        if dialect.quoting == csv.QUOTE_MINIMAL and not dialect.delimiter.isspace():
            header, rows = _less_blanks(path, lines, dialect, header, rows)
    names = _column_names(path, header)
    if len(names) > 1 and (repeated := sum(row == header for row in rows)):
        lines_repeat = agreeing(repeated, "line repeats", "lines repeat")
        are = agreeing(repeated, "is", "are")
        reading.say(f"{path}: {repeated} further {lines_repeat} the column names, and {are} left out")
        rows = [row for row in rows if row != header]
    if not rows:
        raise UsageError(f"{path}: there is a header but no rows; add rows")
    return dict(zip(names, zip(*rows, strict=True), strict=True))


def _without_blanks(path: Path, lines: Sequence[str], dialect: _Dialect) -> tuple[list[str], list[list[str]]]:
    """The rows of a file that cannot be read otherwise, because quotes follow blanks.

    Raises:
        UsageError: that is not why.
    """
    try:
        return _rows(path, lines, replace(dialect, skip_blanks=True))
    except UsageError:
        return _rows(path, lines, dialect)


def _less_blanks(
    path: Path, lines: Sequence[str], dialect: _Dialect, header: list[str], rows: list[list[str]]
) -> tuple[list[str], list[list[str]]]:
    """The rows without the blanks behind separators, if these are there throughout, or before quotes around a cell."""
    quoted = next(
        ((r, c) for r, row in enumerate(rows) for c, cell in enumerate(row) if _BLANK_QUOTE.match(cell)), None
    )
    throughout = len(header) > 1 and all(name[:1].isspace() for name in header[1:])
    if quoted is None and not throughout:
        return header, rows
    try:
        names, shorter = _rows(path, lines, replace(dialect, skip_blanks=True))
    except UsageError:
        return header, rows
    # A blank and a quote within quotes are text.
    if throughout or (quoted is not None and shorter[quoted[0]][quoted[1]] != rows[quoted[0]][quoted[1]]):
        return names, shorter
    return header, rows


def _rows(path: Path, lines: Sequence[str], dialect: _Dialect) -> tuple[list[str], list[list[str]]]:
    """The column names as written, and the rows."""
    csv.field_size_limit(_LONGEST_CELL)
    # Strict, or else a quote that is never closed swallows the remaining file as one cell.
    reader = csv.reader(
        lines,
        delimiter=dialect.delimiter,
        quoting=dialect.quoting,
        skipinitialspace=dialect.skip_blanks,
        strict=True,
    )
    rows: list[list[str]] = []
    try:
        header = next((row for row in reader if row), [])
        check_names(path, header)
        for row in reader:
            if len(row) == len(header):
                rows.append(row)
            elif row:
                advice = "check its tabs" if dialect.delimiter == "\t" else f"quote text that has {_word(dialect)}"
                raise UsageError(
                    f"{path}: line {reader.line_num} has {len(row)} field(s), the header has {len(header)}; {advice}"
                )
    except csv.Error as error:
        raise UsageError(f"{path}: line {reader.line_num} is malformed ({one_line(error)}); correct it") from None
    return header, rows


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
