"""Read Parquet, some rows at a time: a few kilobytes of it may stand for gigabytes of repeated values."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from capaft.data.compressed import most_unpacked
from capaft.data.lazy import ROWS
from capaft.data.spool import spooled
from capaft.data.width import MOST_COLUMNS, MOST_LEVELS, TooWideError, check_schema, too_wide
from capaft.support.errors import UsageError

# Bytes of a column that are read at a time.
_PAGES = 2**20


def read_parquet(path: Path, source: pa.NativeFile) -> pa.Table:
    """The table in a Parquet file, on the disk if it is large.

    Args:
        path: the file, for messages.
        source: its content, of which no more is in memory than a few pages of each column.

    Raises:
        UsageError: it unpacks to more than such a file can hold, or has too many columns.
        pa.ArrowException: it is damaged.
    """
    metadata = pq.read_metadata(source)
    if metadata.num_columns > MOST_COLUMNS:
        raise too_wide(path, metadata.num_columns)
    columns = [metadata.schema.column(at) for at in range(metadata.num_columns)]
    if any(column.max_definition_level > 2 * MOST_LEVELS for column in columns):
        raise TooWideError(f"{path}: a column has more than {MOST_LEVELS} lists or records within one another; drop it")
    limit = most_unpacked(source.size())
    groups = (metadata.row_group(at) for at in range(metadata.num_row_groups))
    if sum(group.total_byte_size for group in groups) > limit:
        raise _too_large(path, limit)
    # Texts that a file holds once for many rows stay so until their size is known.
    texts = [field.name for field in metadata.schema.to_arrow_schema() if _is_text(field.type)]
    file = pq.ParquetFile(source, read_dictionary=texts, buffer_size=_PAGES, pre_buffer=False)
    check_schema(path, file.schema_arrow)
    if not metadata.num_rows:
        return plainly_typed(file.read())
    return spooled(_parts(path, file, limit))


def plainly_typed(table: pa.Table) -> pa.Table:
    """Convert other encodings of text, pandas' categories and polars' views, to plain text."""
    for position, field in enumerate(table.schema):
        plain = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        plain = pa.string() if pa.types.is_string_view(plain) else plain
        if plain != field.type:
            table = table.set_column(position, field.name, table.column(position).cast(plain))
    return table


def _parts(path: Path, file: pq.ParquetFile, limit: int) -> Iterator[pa.Table]:
    """The rows, with all texts written out.

    Raises:
        UsageError: they take more than `limit` bytes.
    """
    unpacked = 0
    for batch in file.iter_batches(batch_size=ROWS):
        unpacked += sum(map(_bytes, batch.columns))
        if unpacked > limit:
            raise _too_large(path, limit)
        yield plainly_typed(pa.table(batch))


def _too_large(path: Path, limit: int) -> UsageError:
    return UsageError(
        f"{path}: its values take more than {limit >> 20} MiB, too much for a Parquet file of this size; if you trust "
        "it, save them as JSON lines"
    )


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind)


def _bytes(column: pa.Array) -> int:
    """Bytes of a column with all texts written out."""
    if not pa.types.is_dictionary(column.type):
        return int(column.nbytes)
    sizes = pc.binary_length(column.dictionary)
    return int(pc.sum(sizes.take(column.indices)).as_py() or 0)
