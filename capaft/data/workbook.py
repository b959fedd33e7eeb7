"""Read the only sheet of an Excel workbook, by openpyxl; the first line has the names of the columns."""

from __future__ import annotations

import datetime
import io
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import ParseError
from zipfile import BadZipFile

from capaft.data.width import check_names
from capaft.support.errors import UsageError, one_line

Columns = dict[str, list[Any]]


def read_workbook(path: Path, content: bytes) -> Columns:
    """The values of each column: text, numbers, truth values, and dates as text.

    Raises:
        UsageError: openpyxl is not installed, the file is damaged, or several sheets have rows.
    """
    try:
        import openpyxl
        from openpyxl.utils.exceptions import InvalidFileException
    except ImportError:
        raise UsageError(
            f"{path}: Excel files need openpyxl; install it (pip install openpyxl), or save the sheet as CSV"
        ) from None
    try:
        book = openpyxl.load_workbook(io.BytesIO(content), read_only=True, data_only=True)
        sheets = {sheet.title: _rows(sheet) for sheet in book.worksheets}
    except (BadZipFile, InvalidFileException, ParseError, OSError, KeyError, ValueError, TypeError) as error:
        raise UsageError(f"{path}: cannot read this workbook ({one_line(error)}); save it again") from error
    filled = {title: rows for title, rows in sheets.items() if rows}
    if len(filled) != 1:
        reason = (
            f"several sheets have rows, {', '.join(filled)}; save each as a file of its own"
            if filled
            else "there are no rows"
        )
        raise UsageError(f"{path}: {reason}")
    ((header, *rows),) = filled.values()
    names = ["" if name is None else str(name).strip() for name in header]
    filled_places = {at for row in rows for at, value in enumerate(row) if value is not None}
    kept = sorted(filled_places.union(at for at, name in enumerate(names) if name))
    names += [""] * (1 + max(kept, default=0) - len(names))
    labels = [names[at] or f"Unnamed: {at}" for at in kept]
    check_names(path, labels)
    columns = {
        label: [row[at] if at < len(row) else None for row in rows] for at, label in zip(kept, labels, strict=True)
    }
    if len(columns) < len(kept):
        raise UsageError(f"{path}: two columns have the same name; rename one")
    return columns


def _rows(sheet: Any) -> list[list[Any]]:
    """The rows that have a value, each up to its last one."""
    rows = []
    for cells in sheet.iter_rows(values_only=True):
        row = [_value(value) for value in cells]
        while row and row[-1] is None:
            del row[-1]
        if row:
            rows.append(row)
    return rows


def _value(value: Any) -> Any:
    if isinstance(value, datetime.date | datetime.time | datetime.timedelta):
        return value.isoformat() if not isinstance(value, datetime.timedelta) else str(value)
    return value
