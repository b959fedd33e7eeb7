"""Read one data file into a `datasets.Dataset` in memory.

The readers are the standard library's (`csv`, `json`) and pyarrow's, not the caching builders of `datasets`: those
keep a second copy of every file in the user's cache, and pandas beneath them turns texts such as "NA", "null" and ""
into missing values. Here text stays as written, and an error names its line.
"""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from capaft.data.squad_file import is_squad, squad_records
from capaft.support.errors import UsageError, one_line

TEXT = ".txt"
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".arrow", ".feather", TEXT)
# Narrower than int() and float(): "007", "+1", "nan" and numbers too long for 64 bits stay text.
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,14})(\.[0-9]+)?([eE][+-]?[0-9]{1,2})?")
_LONGEST_CELL = 2**31 - 1


def read_rows(path: Path, text_columns: Collection[str] = ()) -> datasets.Dataset:
    """Read one file of rows with named columns.

    CSV is comma-separated with double quotes, TSV is tab-separated without quotes. Both start with a line of column
    names, and their columns become integers or floats if every cell allows it. JSON is one record a line, one list of
    records, or a file like SQuAD's. Arrow is a file or a stream. Text is one row a line, in a column `text`, without
    the blank lines.

    Args:
        path: an existing file; its suffix, one of `TABLE_SUFFIXES`, names its format.
        text_columns: columns of CSV and TSV that stay text even if all their cells look like numbers.

    Raises:
        UsageError: the file has another format, is unreadable, malformed or not UTF-8, or has no rows.
    """
    suffix = path.suffix.lower()
    try:
        if suffix == ".csv":
            table = _read_delimited(path, ",", csv.QUOTE_MINIMAL, text_columns)
        elif suffix == ".tsv":
            table = _read_delimited(path, "\t", csv.QUOTE_NONE, text_columns)
        elif suffix == ".parquet":
            table = _read_parquet(path)
        elif suffix in (".arrow", ".feather"):
            table = _read_arrow(path)
        elif suffix == TEXT:
            table = pa.table({"text": [line.rstrip("\r\n") for line in _lines(path) if line.strip()]})
        elif suffix in TABLE_SUFFIXES:
            table = _read_json(path)
        else:
            raise UsageError(f"{path}: not a data file that capaft reads; give one of {' '.join(TABLE_SUFFIXES)}")
        # A damaged file may claim rows without columns.
        if table.num_rows == 0 or table.num_columns == 0:
            raise UsageError(f"{path}: there are no rows in this file")
        return datasets.Dataset(table)
    # pyarrow raises all of these, and `datasets` a KeyError for odd metadata in a Parquet or Arrow file.
    except (OSError, ValueError, TypeError, KeyError, pa.ArrowException) as error:
        raise UsageError(f"{path}: cannot read this file ({one_line(error)}); save it again") from error


def _lines(path: Path) -> Iterator[str]:
    """Decoded lines with their ends. Only a line feed ends a line: text may contain U+2028."""
    if path.stat().st_size == 0:
        raise UsageError(f"{path}: the file is empty")
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            try:
                yield line.decode("utf-8")
            except UnicodeDecodeError:
                raise UsageError(f"{path}: line {number} is not UTF-8; save the file as UTF-8 text") from None


def _read_delimited(path: Path, delimiter: str, quoting: Literal[0, 3], text_columns: Collection[str]) -> pa.Table:
    csv.field_size_limit(_LONGEST_CELL)
    # Strict, or else a quote that is never closed swallows the remaining file as one cell.
    reader = csv.reader(_lines(path), delimiter=delimiter, quoting=quoting, strict=True)
    rows: list[list[str]] = []
    try:
        header = _column_names(path, next((row for row in reader if row), []), delimiter)
        for row in reader:
            if len(row) == len(header):
                rows.append(row)
            elif row:
                advice = "quote text that has commas" if delimiter == "," else "check its tabs"
                raise UsageError(
                    f"{path}: line {reader.line_num} has {len(row)} field(s), the header has {len(header)}; {advice}"
                )
    except csv.Error as error:
        raise UsageError(f"{path}: line {reader.line_num} is malformed ({one_line(error)}); correct it") from None
    if not rows:
        raise UsageError(f"{path}: there is a header but no rows; add rows")
    cells = zip(*rows, strict=True)
    columns = dict(zip(header, cells, strict=True))
    return pa.table({name: _typed(column, name in text_columns) for name, column in columns.items()})


def _column_names(path: Path, header: list[str], delimiter: str) -> list[str]:
    if len(header) == 1:
        for other, word in ((",", "commas"), (";", "semicolons"), ("\t", "tabs")):
            if other != delimiter and other in header[0]:
                expected = "commas" if delimiter == "," else "tabs"
                raise UsageError(f"{path}: the columns are separated by {word}; as its suffix says, use {expected}")
    # pandas writes its index under a blank name, and reads that back under this one.
    names = [name.strip() or f"Unnamed: {position}" for position, name in enumerate(header)]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise UsageError(f"{path}: the header names column {repeated!r} twice; rename one")
    if not names:
        raise UsageError(f"{path}: the file is empty")
    return names


def _typed(cells: tuple[str, ...], keep_text: bool) -> pa.Array:
    """Convert to integers or floats if every cell that is not blank is written as one; else keep the text."""
    if not keep_text and any(cells):
        if all(_INTEGER.fullmatch(cell) for cell in cells if cell):
            return pa.array([int(cell) if cell else None for cell in cells], pa.int64())
        if all(_NUMBER.fullmatch(cell) for cell in cells if cell):
            return pa.array([float(cell) if cell else None for cell in cells], pa.float64())
    return pa.array(cells, pa.string())


def _read_json(path: Path) -> pa.Table:
    lines = list(_lines(path))
    first = next((line.lstrip() for line in lines if line.strip()), "")
    if not first:
        raise UsageError(f"{path}: the file is empty")
    records: list[dict[str, Any]] = []
    parsed: Iterable[tuple[int, Any]]
    unit = "record"
    if first.startswith("["):
        parsed = enumerate(_parse(path, "".join(lines), "the list"), start=1)
    elif (document := _squad(path, lines)) is not None:
        parsed = enumerate(squad_records(path, document), start=1)
    else:
        parsed = ((n, _parse(path, line, f"line {n}")) for n, line in enumerate(lines, start=1) if line.strip())
        unit = "line"
    for number, record in parsed:
        if not isinstance(record, dict):
            raise UsageError(f'{path}: {unit} {number} is not a record such as {{"text": "...", "label": 0}}')
        records.append(record)
    names = dict.fromkeys(name for record in records for name in record)
    return pa.table({name: _json_column(path, name, [row.get(name) for row in records]) for name in names})


def _squad(path: Path, lines: list[str]) -> Any:
    """Parse a file that is one document like SQuAD's; None for any other."""
    try:
        document = json.loads("".join(lines)) if path.suffix.lower() == ".json" else None
    except (ValueError, RecursionError):
        # It may hold one record a line, and if not, that error can name the line.
        return None
    return document if is_squad(document) else None


def _parse(path: Path, text: str, part: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{path}: {part} is not JSON ({one_line(error)}); give one record a line or one list of records"
        ) from None


def _json_column(path: Path, name: str, values: list[Any]) -> pa.Array:
    """Build a column of one type; of text, as in CSV, if plain values have several types or too many digits.

    Lists of records, such as messages, stay JSON: one type for all would give each the fields of every other.
    """
    try:
        try:
            return _records(list(map(_without_nan, values))) if _are_records(values) else pa.array(values)
        except (ValueError, TypeError, OverflowError, pa.ArrowException):
            # NaN, which pandas writes for a missing value, is a number only among numbers.
            values = list(map(_without_nan, values))
            if any(isinstance(value, list | dict) for value in values):
                return pa.array(values)
            texts = (value if value is None or isinstance(value, str) else json.dumps(value) for value in values)
            return pa.array(texts, pa.string())
    except (ValueError, TypeError, OverflowError, pa.ArrowException) as error:
        kinds = sorted({type(value).__name__ for value in values if value is not None})
        reason = f"it mixes {' and '.join(kinds)}" if len(kinds) > 1 else one_line(error)
        raise UsageError(
            f"{path}: column {name!r} cannot be read as one type ({reason}); give its values one type"
        ) from None


def _are_records(values: list[Any]) -> bool:
    lists = [value for value in values if value is not None]
    records = [record for value in lists if isinstance(value, list) for record in value]
    return (
        all(isinstance(value, list) for value in lists)
        and bool(records)
        and all(isinstance(record, dict) for record in records)
    )


def _records(values: list[Any]) -> pa.Array:
    texts = [value and [json.dumps(record, ensure_ascii=False) for record in value] for value in values]
    return pa.array(texts, pa.list_(pa.string())).cast(pa.list_(pa.json_()))


def _without_nan(value: Any) -> Any:
    """A JSON value with null for every NaN."""
    if isinstance(value, list):
        return list(map(_without_nan, value))
    if isinstance(value, dict):
        return {name: _without_nan(part) for name, part in value.items()}
    return None if isinstance(value, float) and value != value else value


def _read_parquet(path: Path) -> pa.Table:
    if path.stat().st_size == 0:
        raise UsageError(f"{path}: the file is empty")
    # Not `read_table`, which makes columns of `key=value` in the names of parent directories.
    return _plainly_typed(pq.ParquetFile(path).read())


def _read_arrow(path: Path) -> pa.Table:
    content = path.read_bytes()
    if not content:
        raise UsageError(f"{path}: the file is empty")
    if content.startswith(b"FEA1"):
        raise UsageError(f"{path}: Feather version 1 is not supported; write the file again with a current pandas")
    # `datasets` writes streams, pandas and polars write files, and either suffix is used for both.
    is_file = content.startswith(b"ARROW1")
    reader = pa.ipc.open_file(content) if is_file else pa.ipc.open_stream(content)
    table = reader.read_all()
    table.validate(full=True)
    return _plainly_typed(table)


def _plainly_typed(table: pa.Table) -> pa.Table:
    """Convert other encodings of text, pandas' categories and polars' views, to plain text."""
    for position, field in enumerate(table.schema):
        plain = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        plain = pa.string() if pa.types.is_string_view(plain) else plain
        if plain != field.type:
            table = table.set_column(position, field.name, table.column(position).cast(plain))
    return table
