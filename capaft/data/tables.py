"""Read one data file into a `datasets.Dataset`.

What a table takes beyond a few megabytes is on the disk. CSV, text, JSON lines, Parquet and Arrow are read some rows at
a time, so that memory does not grow with their number; documents of JSON, workbooks, CoNLL, and texts with spans are in
memory as a whole while they are read.

The readers are the standard library's (`csv`, `json`) and pyarrow's, not the caching builders of `datasets`: those
keep a second copy of every file in the user's cache, and pandas beneath them turns texts such as "NA", "null" and ""
into missing values. Here text stays as written, and an error names its line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets.fingerprint import generate_random_fingerprint

from capaft.data.column_types import column_parts, record_parts, typed_table
from capaft.data.compressed import COMPRESSIONS, WORKBOOK, find_content, format_suffix
from capaft.data.conll import CONLL_SUFFIXES, read_conll
from capaft.data.delimited import read_delimited
from capaft.data.disguise import binary_suffix, check_is_data, text_suffix
from capaft.data.json_records import read_json_records
from capaft.data.lazy import batches
from capaft.data.list_cells import list_cells
from capaft.data.parquet import plainly_typed, read_parquet
from capaft.data.reading import QUIETLY, Reading
from capaft.data.spans import may_be_span, tag_words
from capaft.data.spool import StoredColumn, spooled
from capaft.data.text_lines import text_lines
from capaft.data.width import check_records, check_schema
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
        named, content = find_content(path)
        if named not in _SUFFIXES:
            raise _unreadable(path, f" (it holds {named or 'one without a suffix'})")
        head = content.head()
        if not head:
            raise UsageError(f"{path}: the file is empty")
        check_is_data(path, head)
        suffix = binary_suffix(head) or named
        if suffix in (".arrow", ".feather"):
            table = _read_arrow(path, content.read())
        elif suffix == ".parquet":
            table = read_parquet(path, content.file())
        elif suffix == WORKBOOK:
            table = _typed_columns(path, tag_words(str(path), read_workbook(path, content.read()), reading))
        else:
            lines = text_lines(path, content)
            suffix = text_suffix(suffix, lines)
            table = _read_text(path, suffix, lines, text_columns, reading)
        if suffix != named:
            reading.say(f"{path}: read as {suffix}, which its content is")
        # A damaged file may claim rows without columns.
        if table.num_rows == 0 or table.num_columns == 0:
            raise UsageError(f"{path}: there are no rows in this file")
        table = gather_words(str(path), _tagged(path, table, reading), reading)
        # Else `datasets` copies the table to hash it.
        return datasets.Dataset(table, fingerprint=generate_random_fingerprint())
    # pyarrow raises all of these, and `datasets` a KeyError for odd metadata in a Parquet or Arrow file.
    except (OSError, ValueError, TypeError, KeyError, RecursionError, pa.ArrowException) as error:
        report_exhaustion(error, f"reading {path}")
        raise UsageError(f"{path}: cannot read this file ({one_line(error)}); save it again") from error


def _read_text(
    path: Path, suffix: str, lines: Iterable[str], text_columns: Collection[str], reading: Reading
) -> pa.Table:
    """The table in the lines of a text file, whose format has that suffix."""
    if not any(line.strip() for line in lines):
        raise UsageError(f"{path}: {'there are no rows in this file' if suffix == TEXT else 'the file is empty'}")
    if suffix in CONLL_SUFFIXES:
        return pa.table(read_conll(path, lines, reading))
    if suffix == TEXT:
        texts = (line.rstrip("\r\n") for line in lines if line.strip())
        return spooled(pa.table({"text": pa.array(some, pa.string())}) for some in batches(texts, len))
    if suffix in _JSON and not _is_delimited(path, lines):
        return _read_records(path, read_json_records(path, lines, suffix, reading), reading)
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
    tagged = tag_words(str(path), {**cells, **lists}, reading)
    texts_of = {name for name, values in tagged.items() if name in cells and all(isinstance(v, str) for v in values)}
    others = _typed_columns(path, {name: values for name, values in tagged.items() if name not in texts_of})
    return pa.table(
        {
            name: _typed(_stored(values), name in text_columns) if name in texts_of else others.column(name)
            for name, values in tagged.items()
        }
    )


def _read_records(path: Path, records: Collection[Mapping[str, Any]], reading: Reading) -> pa.Table:
    names = check_records(path, records)
    columns = {name: _Field(records, name) for name in names}
    tagged = tag_words(str(path), columns, reading)
    if tagged is not columns:
        return _typed_columns(path, tagged)
    return typed_table(path, lambda: record_parts(records, names), list(names), len(records))


class _Field(Collection[Any]):
    """The values of a key of records."""

    def __init__(self, records: Collection[Mapping[str, Any]], name: str) -> None:
        self._records = records
        self._name = name

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[Any]:
        return (record.get(self._name) for record in self._records)

    def __contains__(self, value: object) -> bool:
        return any(value == other for other in self)


def _typed_columns(path: Path, columns: Mapping[str, Collection[Any]]) -> pa.Table:
    rows = len(next(iter(columns.values()), ()))
    return typed_table(path, lambda: column_parts(columns), list(columns), rows)


def _stored(texts: Collection[str]) -> StoredColumn:
    return texts if isinstance(texts, StoredColumn) else StoredColumn(pa.chunked_array([pa.array(texts, pa.string())]))


def _is_delimited(path: Path, lines: Iterable[str]) -> bool:
    """True if a file that is named like JSON does not begin like it, and is a table of several columns instead."""
    if next(line for line in lines if line.strip()).lstrip()[0] in "{[":
        return False
    try:
        return len(read_delimited(path, lines, _CSV, QUIETLY)) > 1
    except UsageError:
        return False


def _tagged(path: Path, table: pa.Table, reading: Reading) -> pa.Table:
    """A table of texts with spans as words with tags; any other is unchanged."""
    lists = [field.type.value_type for field in table.schema if pa.types.is_list(field.type)]
    if not any(pa.types.is_struct(item) and may_be_span([field.name for field in item]) for item in lists):
        return table
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    tagged = tag_words(str(path), dict(columns), reading)
    return table if tagged == columns else _typed_columns(path, tagged)


def _typed(cells: StoredColumn, keep_text: bool) -> pa.ChunkedArray:
    """Convert to integers or floats if every cell that is not blank is written as one; else keep the text."""
    if not keep_text and any(cells):
        if all(_INTEGER.fullmatch(cell) for cell in cells if cell):
            return _numbers(cells, int, pa.int64())
        if all(_NUMBER.fullmatch(cell) for cell in cells if cell):
            return _numbers(cells, float, pa.float64())
    return cells.column


def _numbers(cells: StoredColumn, read: Callable[[str], float], kind: pa.DataType) -> pa.ChunkedArray:
    parts = batches((read(cell) if cell else None for cell in cells), lambda number: 1)
    return spooled(pa.table({"": pa.array(part, kind)}) for part in parts).column(0)


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
