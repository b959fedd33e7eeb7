"""Values of Python as rows: texts, pairs, records, images, recordings."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from datetime import date, time
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import pyarrow as pa
from datasets import Dataset

from capaft.data.column_types import record_parts, typed_table
from capaft.data.json_records import whole_characters
from capaft.data.media.decode import open_audio, open_image
from capaft.data.media.folder import feature_of
from capaft.data.width import check_records
from capaft.support.errors import UsageError

_MODES = ("1", "L", "LA", "RGB", "RGBA")
_SOURCE = Path("inputs")
# What a mapping has that is an image or a recording.
_FILE = frozenset({"bytes", "path", "array", "sampling_rate"})


class ValueRows(NamedTuple):
    """Values as rows.

    Attributes:
        rows: the rows.
        faults: the rows whose image or recording cannot be read, by position, each with what is wrong.
    """

    rows: Dataset
    faults: dict[int, str]


def rows_of_values(values: Sequence[Any], names: tuple[str, str | None], medium: str | None = None) -> ValueRows:
    """The rows that values stand for.

    Args:
        values: a text, an image or a recording each; a tuple for two inputs; or a mapping from columns to values.
        names: columns of the first and the second input, for values that are not mappings.
        medium: `image` or `audio` where the inputs are such, as files, paths, bytes or arrays.

    Raises:
        UsageError: the values are not of one form, or have two inputs where one is expected.
    """
    records = [_record({names[0]: value} if medium and _is_file(value) else value, names) for value in values]
    faults: dict[int, str] = {}
    if medium is None:
        return ValueRows(_table(records), faults)
    media_names = {name for record in records for name, value in record.items() if _is_medium(value, name == names[0])}
    if not media_names:
        return ValueRows(_table(records), faults)
    media: dict[str, list[Any]] = {name: [] for name in media_names}
    for row, record in enumerate(records):
        for name in media_names:
            try:
                media[name].append(_file(record.get(name), medium))
            except UsageError as error:
                media[name].append(None)
                faults[row] = str(error)
    others = [{name: value for name, value in record.items() if name not in media_names} for record in records]
    rows = _table(others) if any(others) else None
    return ValueRows(_with_media(rows, media, medium), faults)


def _record(value: Any, names: tuple[str, str | None]) -> dict[str, Any]:
    first, second = names
    if isinstance(value, Mapping):
        return {str(name): part for name, part in value.items()}
    if not isinstance(value, tuple):
        return {first: value} if second is None else {first: value, second: None}
    if len(value) != 2 or second is None:
        takes = "one input" if second is None else "two inputs"
        raise UsageError(f"this adapter takes {takes} a row, and these rows have {len(value)}")
    return {first: value[0], second: value[1]}


def _is_file(value: Any) -> bool:
    """True for a mapping that is one image or recording, as `datasets` has them, and no row of columns."""
    return isinstance(value, Mapping) and value.keys() <= _FILE and bool(value.keys() & {"bytes", "array", "path"})


def _table(records: Sequence[Mapping[str, Any]]) -> Dataset:
    """The rows of records, with the types that records of a JSON file would get."""
    plain = [{name: _plain(value) for name, value in record.items()} for record in records]
    names = check_records(_SOURCE, plain)
    table = typed_table(_SOURCE, lambda: record_parts(plain, names), list(names), len(plain))
    for at, field in enumerate(table.schema):
        # Rows of which none has a second text, say, lack it one by one.
        if pa.types.is_null(field.type):
            table = table.set_column(at, field.name, table.column(at).cast(pa.string()))
    return Dataset(table)


def _plain(value: Any) -> Any:
    """A value without the types of numpy, of paths and of dates, and without half characters."""
    if isinstance(value, str):
        return whole_characters(value)
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, tuple | list):
        return [_plain(part) for part in value]
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    return str(value) if isinstance(value, os.PathLike) else value


def _is_medium(value: Any, is_input: bool) -> bool:
    """True for the content of a file, and in the column of the inputs for the path of one."""
    if isinstance(value, bytes | bytearray) or hasattr(value, "__array__") or hasattr(value, "getbands"):
        return True
    if isinstance(value, Mapping):
        return bool(value.keys() & {"bytes", "array"})
    return is_input and value is not None


def _file(value: Any, medium: str) -> dict[str, Any] | None:
    """An undecoded image or recording: the path of a file, or its content.

    Raises:
        UsageError: it is none.
    """
    if value is None:
        return None
    if isinstance(value, str | os.PathLike):
        return {"bytes": None, "path": str(value)}
    if isinstance(value, bytes | bytearray):
        return {"bytes": bytes(value), "path": None}
    if isinstance(value, Mapping) and value.get("array") is None:
        return {"bytes": value.get("bytes"), "path": value.get("path")}
    return {"bytes": _png(value) if medium == "image" else _wav(value), "path": None}


def _png(value: Any) -> bytes:
    image = open_image(value)
    stream = io.BytesIO()
    (image if image.mode in _MODES else image.convert("RGB")).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def _wav(value: Any) -> bytes:
    if not isinstance(value, Mapping):
        raise UsageError('a recording in an array needs its rate: {"array": samples, "sampling_rate": 16000}')
    from scipy.io import wavfile

    samples, rate = open_audio(value)
    stream = io.BytesIO()
    wavfile.write(stream, rate, samples)
    return stream.getvalue()


def _with_media(rows: Dataset | None, media: Mapping[str, list[Any]], medium: str) -> Dataset:
    """The rows with columns of undecoded files."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    features = {} if rows is None else dict(rows.features)
    columns = {} if rows is None else {name: rows.data.column(name) for name in rows.column_names}
    for name, files in media.items():
        columns[name] = pa.array(files, kind)
        features[name] = feature_of(medium)
    return Dataset(pa.table(columns), datasets.DatasetInfo(features=datasets.Features(features)))
