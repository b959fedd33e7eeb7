"""Read one data file into a `datasets.Dataset` in memory.

The readers are the standard library's (`csv`, `json`) and pyarrow's, not the caching builders of `datasets`: those
keep a second copy of every file in the user's cache, and pandas beneath them turns texts such as "NA", "null" and ""
into missing values. Here text stays as written, and an error names its line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from capaft.data.compressed import COMPRESSIONS, WORKBOOK, format_suffix, read_content
from capaft.data.conll import CONLL_SUFFIXES, read_conll
from capaft.data.delimited import read_delimited
from capaft.data.disguise import binary_suffix, check_is_data, text_suffix
from capaft.data.json_records import read_json_records
from capaft.data.list_cells import list_cells
from capaft.data.parquet import plainly_typed, read_parquet
from capaft.data.reading import QUIETLY, Reading
from capaft.data.spans import may_be_span, tag_words
from capaft.data.text_lines import text_lines
from capaft.data.width import check_records, check_schema, check_values
from capaft.data.word_rows import gather_words
from capaft.data.workbook import read_workbook
from capaft.support.errors import UsageError, one_line
from capaft.support.out_of_memory import report_exhaustion

TEXT = ".txt"
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".arrow", ".feather", TEXT)
_SUFFIXES = (*TABLE_SUFFIXES, *CONLL_SUFFIXES, WORKBOOK)
_CSV = ".csv"
_JSON = (".json", ".jsonl", ".ndjson")
# Narrower than int() and float(): "007", "+1", "nan" and numbers too long for 64 bits stay text.
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,14})(\.[0-9]+)?([eE][+-]?[0-9]{1,2})?")


def _unreadable(path: Path, content: str = "") -> UsageError:
    formats, packed = " ".join(_SUFFIXES), " ".join(COMPRESSIONS)
    return UsageError(
        f"{path}: not a data file that capaft reads{content}; give one of {formats}, or one of these with {packed}"
    )


def is_table(path: Path) -> bool:
    """True if the suffix of a file, before that of a compression, is one of a table's."""
    return format_suffix(path) in _SUFFIXES


def read_rows(path: Path, text_columns: Collection[str] = (), reading: Reading = QUIETLY) -> datasets.Dataset:
    """Read one file of rows with named columns, which may be compressed.

    CSV is comma-separated with double quotes, TSV is tab-separated without quotes. Both start with a line of column
    names, and their columns become integers or floats if every cell allows it, and lists if every cell is written as
    one. JSON is one record a line, one list of records, or another usual shape. Arrow is a file or a stream. Text is
    one row a line, in a column `text`, without the blank lines. CoNLL is one row a sentence, and so are rows of one
    word each. Texts with marked spans become words with tags. Content that is plainly of another format than the
    suffix says is read as what it is.

    Args:
        path: an existing file; its suffix names its format.
        text_columns: columns of CSV and TSV that stay text even if all their cells look like numbers.
        reading: choices of the reader.

    Raises:
        UsageError: the file has another format, is unreadable, malformed or in another encoding, or has no rows.
    """
    if not (is_table(path) or path.suffix.lower() == ".zip"):
        raise _unreadable(path)
    try:
        named, content = read_content(path)
        if named not in _SUFFIXES:
            raise _unreadable(path, f" (it holds {named or 'one without a suffix'})")
        if not content:
            raise UsageError(f"{path}: the file is empty")
        check_is_data(path, content)
        suffix = binary_suffix(content) or named
        if suffix in (".arrow", ".feather"):
            table = _read_arrow(path, content)
        elif suffix == ".parquet":
            table = read_parquet(path, content)
        elif suffix == WORKBOOK:
            table = _typed_table(path, tag_words(str(path), read_workbook(path, content), reading))
        else:
            lines = text_lines(path, content)
            suffix = text_suffix(suffix, lines)
            table = _read_text(path, suffix, lines, text_columns, reading)
        if suffix != named:
            reading.say(f"{path}: read as {suffix}, which its content is")
        # A damaged file may claim rows without columns.
        if table.num_rows == 0 or table.num_columns == 0:
            raise UsageError(f"{path}: there are no rows in this file")
        return datasets.Dataset(gather_words(str(path), _tagged(path, table, reading), reading))
    # pyarrow raises all of these, and `datasets` a KeyError for odd metadata in a Parquet or Arrow file.
    except (OSError, ValueError, TypeError, KeyError, RecursionError, pa.ArrowException) as error:
        report_exhaustion(error, f"reading {path}")
        raise UsageError(f"{path}: cannot read this file ({one_line(error)}); save it again") from error


def _read_text(
    path: Path, suffix: str, lines: Sequence[str], text_columns: Collection[str], reading: Reading
) -> pa.Table:
    """The table in the lines of a text file, whose format has that suffix."""
    if not any(line.strip() for line in lines):
        raise UsageError(f"{path}: {'there are no rows in this file' if suffix == TEXT else 'the file is empty'}")
    if suffix in CONLL_SUFFIXES:
        return pa.table(read_conll(path, lines, reading))
    if suffix == TEXT:
        return pa.table({"text": [line.rstrip("\r\n") for line in lines if line.strip()]})
    if suffix in _JSON and not _is_delimited(path, lines):
        records = read_json_records(path, lines, suffix, reading)
        names = check_records(path, records)
        columns = {name: [record.get(name) for record in records] for name in names}
        return _typed_table(path, tag_words(str(path), columns, reading))
    if suffix in _JSON:
        reading.say(f"{path}: read as {_CSV}, which its content is")
    cells = read_delimited(path, lines, suffix, reading)
    lists = {
        name: values
        for name, column in cells.items()
        if name not in text_columns and (values := list_cells(path, name, column)) is not None
    }
    if lists:
        reading.say(f"{path}: the cells of {', '.join(map(repr, lists))} are written as lists, and are read so")
    tagged = tag_words(str(path), {name: list(lists.get(name, column)) for name, column in cells.items()}, reading)
    return pa.table(
        {
            name: _typed(tuple(values), name in text_columns)
            if name in cells and all(isinstance(value, str) for value in values)
            else _json_column(path, name, values)
            for name, values in tagged.items()
        }
    )


def _is_delimited(path: Path, lines: Sequence[str]) -> bool:
    """True if a file that is named like JSON does not begin like it, and is a table of several columns instead."""
    if next(line for line in lines if line.strip()).lstrip()[0] in "{[":
        return False
    try:
        return len(read_delimited(path, lines, _CSV, QUIETLY)) > 1
    except UsageError:
        return False


def _typed_table(path: Path, columns: Mapping[str, list[Any]]) -> pa.Table:
    return pa.table({name: _json_column(path, name, values) for name, values in columns.items()})


def _tagged(path: Path, table: pa.Table, reading: Reading) -> pa.Table:
    """A table of texts with spans as words with tags; any other is unchanged."""
    lists = [field.type.value_type for field in table.schema if pa.types.is_list(field.type)]
    if not any(pa.types.is_struct(item) and may_be_span([field.name for field in item]) for item in lists):
        return table
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    tagged = tag_words(str(path), dict(columns), reading)
    return table if tagged == columns else _typed_table(path, tagged)


def _typed(cells: tuple[str, ...], keep_text: bool) -> pa.Array:
    """Convert to integers or floats if every cell that is not blank is written as one; else keep the text."""
    if not keep_text and any(cells):
        if all(_INTEGER.fullmatch(cell) for cell in cells if cell):
            return pa.array([int(cell) if cell else None for cell in cells], pa.int64())
        if all(_NUMBER.fullmatch(cell) for cell in cells if cell):
            return pa.array([float(cell) if cell else None for cell in cells], pa.float64())
    return pa.array(cells, pa.string())


def _json_column(path: Path, name: str, values: list[Any]) -> pa.Array:
    """Build a column of one type; of text, as in CSV, if plain values have several types or too many digits.

    Lists of records, such as messages, stay JSON: one type for all would give each the fields of every other.
    """
    check_values(path, name, [] if _are_records(values) else values)
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


def _read_arrow(path: Path, content: bytes) -> pa.Table:
    if content.startswith(b"FEA1"):
        raise UsageError(f"{path}: Feather version 1 is not supported; write the file again with a current pandas")
    # `datasets` writes streams, pandas and polars write files, and either suffix is used for both.
    is_file = content.startswith(b"ARROW1")
    reader = pa.ipc.open_file(content) if is_file else pa.ipc.open_stream(content)
    check_schema(path, reader.schema)
    table = reader.read_all()
    table.validate(full=True)
    return plainly_typed(table)
