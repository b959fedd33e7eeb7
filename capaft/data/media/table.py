"""A table that names images or recordings by their paths -> rows that hold these files, as those of a folder do."""

from __future__ import annotations

import os
from pathlib import Path

import datasets
import pyarrow as pa

from capaft.data.media.folder import MEDIA_KINDS, feature_of, files_at

# What Hugging Face's folders of images and recordings call the column of paths.
_FILE_NAME = "file_name"


def with_files(rows: datasets.Dataset, directory: Path) -> datasets.Dataset:
    """The rows of a file, with each column that names images or recordings as a column of these.

    Args:
        rows: as they were read.
        directory: what relative paths start from: where the table lies.
    """
    table, features = rows.data.table, datasets.Features(rows.features)
    for name, feature in rows.features.items():
        if feature != datasets.Value("string") or not _begins_with_a_file(table.column(name), directory):
            continue
        paths = [path or None for path in table.column(name).to_pylist()]
        if kind := _kind(paths):
            features[name] = feature_of(kind)
            whole = [path and os.path.abspath(directory / path) for path in paths]
            table = table.set_column(table.column_names.index(name), name, files_at(whole))
    if features == rows.features:
        return rows
    found = datasets.Dataset(table.replace_schema_metadata(None), datasets.DatasetInfo(features=features))
    medium = "image" if isinstance(features.get(_FILE_NAME), datasets.Image) else "audio"
    renamed = not isinstance(features.get(_FILE_NAME), datasets.Value | None) and medium not in features
    return found.rename_column(_FILE_NAME, medium) if renamed else found


def _begins_with_a_file(column: pa.ChunkedArray, directory: Path) -> bool:
    """Whether the first value is the path of an image or a recording that exists, and no address or text."""
    first = next((path for value in column if (path := value.as_py())), None)
    return first is not None and _kind([first]) is not None and os.path.isfile(directory / first)


def _kind(paths: list[str | None]) -> str | None:
    """What all these paths lead to, if it is one kind."""
    kinds = {MEDIA_KINDS.get(os.path.splitext(path)[1].lower()) for path in paths if path}
    return kinds.pop() if len(kinds) == 1 else None
