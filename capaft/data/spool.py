"""Tables that are written part by part: in memory while they are small, and then in a file that is mapped into memory.

The file has no name, so that nothing is left behind however the process ends, and there is no cache to grow stale. Its
pages belong to the system, which may drop them whenever others need the memory.
"""

from __future__ import annotations

import mmap
import tempfile
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from capaft.data.lazy import ROWS, LazySequence
from capaft.support.errors import UsageError, one_line

KEPT = 2**25
"""Bytes of a table that stay in memory."""
KEPT_NUMBERS = 2**20
"""Numbers in columns that stay lists."""


class Spool:
    """A table in the making."""

    def __init__(self) -> None:
        self._parts: list[pa.Table] = []
        self._bytes = 0
        self._file: Any = None
        self._writer: Any = None

    def write(self, part: pa.Table) -> None:
        """Add rows; all parts have the same columns.

        Raises:
            UsageError: the disk is full.
        """
        self._parts.append(part)
        self._bytes += part.nbytes
        if self._writer is not None or self._bytes > KEPT:
            self._on_disk(self._flush)

    def table(self) -> pa.Table:
        """All rows that were written, at least one part of them.

        Raises:
            UsageError: the disk is full.
        """
        if self._writer is None:
            return pa.concat_tables(self._parts)
        return self._on_disk(self._mapped)

    def _flush(self) -> None:
        if self._writer is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - it is closed when its content is mapped
            self._writer = pa.ipc.new_stream(self._file, self._parts[0].schema)
        for part in self._parts:
            self._writer.write_table(part)
        self._parts = []

    def _mapped(self) -> pa.Table:
        self._writer.close()
        self._file.flush()
        mapped = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        self._file.close()
        return pa.ipc.open_stream(pa.py_buffer(mapped)).read_all()

    def _on_disk(self, step: Callable[[], Any]) -> Any:
        try:
            return step()
        except OSError as error:
            raise UsageError(
                f"{tempfile.gettempdir()}: cannot write temporary data there ({one_line(error)}); make room, or name "
                "another directory in the environment variable TMPDIR"
            ) from error


def spooled(parts: Iterable[pa.Table]) -> pa.Table:
    """The rows of all parts, at least one, in one table."""
    spool = Spool()
    for part in parts:
        spool.write(part)
    return spool.table()


def gathered(rows: datasets.Dataset) -> datasets.Dataset:
    """Rows that were selected from others, in a table of their own."""
    if rows._indices is None:
        return rows
    # `datasets` itself would write the rows to a file of its cache, or hold them all in memory.
    parts = rows.with_format("arrow").iter(ROWS)
    table = spooled(parts) if len(rows) else rows.data.table.slice(0, 0)
    return in_dataset(table, rows, "gathered")


def in_dataset(table: pa.Table, like: datasets.Dataset, change: str) -> datasets.Dataset:
    """A table in place of that of another data set, whose types it keeps.

    Args:
        table: the table.
        like: the data set that it was made of.
        change: a word for what was done to it.
    """
    info = datasets.DatasetInfo(features=like.features)
    return datasets.Dataset(datasets.table.InMemoryTable(table), info, fingerprint=f"{like._fingerprint}.{change}")


class StoredColumn(LazySequence):
    """A column of a table, read entry by entry as Python values.

    Attributes:
        column: the column.
    """

    def __init__(self, column: pa.ChunkedArray) -> None:
        self.column = column
        self._parts = [_reader(chunk) for chunk in column.chunks]
        self._ends = list(accumulate(len(chunk) for chunk in column.chunks))

    def __len__(self) -> int:
        return len(self.column)

    def __iter__(self) -> Iterator[Any]:
        for chunk, read in zip(self.column.iterchunks(), self._parts, strict=True):
            if _is_plain(chunk):
                yield from map(read, range(len(chunk)))
            else:
                for start in range(0, len(chunk), ROWS):
                    yield from chunk.slice(start, ROWS).to_pylist()

    def at(self, index: int) -> Any:
        """See `LazySequence.at`."""
        part = bisect_right(self._ends, index)
        return self._parts[part](index - (self._ends[part - 1] if part else 0))

    def largest(self) -> int:
        """The largest of the numbers in its lists; -1 if there is none."""
        leaves = self.column
        while pa.types.is_list(leaves.type):
            leaves = pc.list_flatten(leaves)
        largest = pc.max(leaves).as_py()
        return -1 if largest is None else int(largest)


def stored_columns(batches: Iterable[Mapping[str, Sequence[Any]]]) -> dict[str, Sequence[Any]]:
    """The columns of all batches: lists while they are short, and then on the disk.

    Args:
        batches: columns by name, the same in each batch, whose entries are whole numbers, texts, or lists of these.
    """
    kept: dict[str, list[Any]] = {}
    size = unwritten = 0
    spool: Spool | None = None
    schema: pa.Schema | None = None

    def part() -> pa.Table:
        arrays = {name: pa.array(values, schema.field(name).type if schema else None) for name, values in kept.items()}
        return pa.table(arrays if schema else {name: _narrow(array) for name, array in arrays.items()})

    for batch in batches:
        for name, values in batch.items():
            kept.setdefault(name, []).extend(values)
            size += sum(map(_size, values))
        unwritten += len(next(iter(batch.values())))
        if size > KEPT_NUMBERS and (unwritten >= ROWS or spool is None):
            spool = spool or Spool()
            table = part()
            schema = table.schema
            spool.write(table)
            kept, unwritten = {}, 0
    if spool is None:
        return dict(kept)
    if any(kept.values()):
        spool.write(part())
    table = spool.table()
    return {name: StoredColumn(table.column(name)) for name in table.column_names}


def lengths_of(column: Sequence[Any]) -> NDArray[np.int64]:
    """Number of entries of each list in a column, `(rows,)`."""
    if isinstance(column, StoredColumn):
        return pc.list_value_length(column.column).to_numpy().astype(np.int64)
    return np.fromiter(map(len, column), dtype=np.int64, count=len(column))


def _size(value: Any) -> int:
    """Number of numbers in a value, a few characters of a text counting as one."""
    if isinstance(value, str):
        return 1 + len(value) // 16
    if isinstance(value, np.ndarray):
        return value.size
    if not isinstance(value, list | tuple):
        return 1
    return len(value) if not value or isinstance(value[0], int) else sum(map(_size, value))


def _narrow(array: pa.Array) -> pa.Array:
    """An array with integers of 32 bits, also where it has no number that tells its type."""
    return array.cast(_narrow_type(array.type))


def _narrow_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_list(kind):
        return pa.list_(_narrow_type(kind.value_type))
    return pa.int32() if pa.types.is_integer(kind) or pa.types.is_null(kind) else kind


def _reader(chunk: pa.Array) -> Callable[[int], Any]:
    """The function from a row of a chunk to its value; lists of numbers are read without Arrow's scalars."""
    if not _is_plain(chunk):
        return lambda row: chunk[row].as_py()
    values, offsets = chunk.values.to_numpy(), chunk.offsets.to_numpy()
    return lambda row: values[offsets[row] : offsets[row + 1]].tolist()


def _is_plain(chunk: pa.Array) -> bool:
    """True for lists of integers, none of them missing."""
    is_list = pa.types.is_list(chunk.type) and pa.types.is_integer(chunk.type.value_type)
    return bool(is_list and not chunk.null_count and not chunk.values.null_count)
