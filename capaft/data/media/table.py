"""Turn columns of a table that name images or recordings by path into columns of these files, as in a media folder."""

from __future__ import annotations

import os
from pathlib import Path

import datasets
import pyarrow as pa

from capaft.data.media.folder import MEDIA_KINDS, feature_of, files_at

# The column of paths in Hugging Face's folders of images and recordings.
_FILE_NAME = "file_name"


def with_files(rows: datasets.Dataset, directory: Path) -> datasets.Dataset:
    """Replace each column that names images or recordings by a column of these files.

    Args:
        rows: the rows of the table.
        directory: the table's directory, where relative paths start.
    """
    table, features = rows.data.table, datasets.Features(rows.features)
    for name, feature in rows.features.items():
        if feature != datasets.Value("string") or not _begins_with_a_file(table.column(name), directory):
            continue
        paths = [path or None for path in table.column(name).to_pylist()]
        if kind := _kind(paths):
            features[name] = feature_of(kind)
            absolute = [path and os.path.abspath(directory / path) for path in paths]
            table = table.set_column(table.column_names.index(name), name, files_at(absolute))
    if features == rows.features:
        return rows
    replaced = datasets.Dataset(table.replace_schema_metadata(None), datasets.DatasetInfo(features=features))
    medium = "image" if isinstance(features.get(_FILE_NAME), datasets.Image) else "audio"
    rename = not isinstance(features.get(_FILE_NAME), datasets.Value | None) and medium not in features
    return replaced.rename_column(_FILE_NAME, medium) if rename else replaced


def _begins_with_a_file(column: pa.ChunkedArray, directory: Path) -> bool:
    """True if the first value is the path of an existing image or recording, not a URL or text."""
    first = next((path for value in column if (path := value.as_py())), None)
    return first is not None and _kind([first]) is not None and os.path.isfile(directory / first)


def _kind(paths: list[str | None]) -> str | None:
    """Kind of file that all these paths name, if it is the same."""
    kinds = {MEDIA_KINDS.get(os.path.splitext(path)[1].lower()) for path in paths if path}
    return kinds.pop() if len(kinds) == 1 else None
