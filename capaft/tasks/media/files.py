"""Images and recordings as inputs of a task: their column, their names, and opening them when a batch is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from capaft.support.errors import UsageError
from capaft.tasks.base.columns import ask_for_column, find_column, row_numbers
from capaft.tasks.base.features import Features

if TYPE_CHECKING:
    from datasets import Dataset


def media_column(
    rows: Dataset,
    named: Mapping[str, str | None],
    medium: str,
    names: Sequence[Sequence[str]],
    fits: Callable[[Any], bool],
    feature_type: type,
) -> str:
    """The column of images or recordings: the user's, one of a usual name, or the only one of its type.

    Args:
        rows: the split.
        named: the columns that the user named, by role.
        medium: the input in one word.
        names: usual names, as `find_column` takes them.
        fits: tells whether a column with a `datasets` feature can hold the inputs.
        feature_type: type of such a column in `datasets`.

    Raises:
        UsageError: the named column is missing or not usable, or none or several could be it.
    """
    content = f"{medium} files, their paths or arrays"
    text = find_column(rows, "text", named.get("text"), names, fits, content, (named.get("label"),))
    return text or only_column(rows, "text", feature_type)


def refuse_pair(task: str, medium: str, named: Mapping[str, str | None]) -> None:
    """Refuse a second input beside an image or a recording.

    Raises:
        UsageError: the user named one.
    """
    if named.get("pair"):
        raise UsageError(f"--pair-column {named['pair']}: {task} takes one {medium} a row; drop it")


def only_column(rows: Dataset, role: str, feature_type: type) -> str:
    """The only column of a type.

    Raises:
        UsageError: none has it, or several do.
    """
    names = [name for name, feature in rows.features.items() if isinstance(feature, feature_type)]
    if len(names) != 1:
        several = f"{' and '.join(map(repr, names))} both could be"
        ask_for_column(rows, role, several if names else f"none has a usual name or is of type {feature_type.__name__}")
    return names[0]


def media_names(rows: Dataset, name: str) -> list[str]:
    """Names of the rows: the paths of their files, or where they have none their numbers.

    Raises:
        UsageError: a row has no value in this column.
    """
    paths: list[str | None] = []
    for table in rows.select_columns([name]).with_format("arrow").iter(1000):
        column = table.column(0)
        if column.null_count:
            row = row_numbers(rows)[len(paths) + pc.index(column.is_null(), True).as_py()]
            raise UsageError(f"row {row}: nothing in column {name!r}; fill it in or drop the row")
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            paths += column.to_pylist()
        elif pa.types.is_struct(column.type) and "path" in column.type.names:
            paths += pc.struct_field(column, "path").to_pylist()
        else:
            paths += [None] * len(column)
    return [path or f"row {row}" for row, path in zip(row_numbers(rows), paths, strict=True)]


def open_media(features: Features, medium: str, indices: Sequence[int], opener: Any) -> list[Any]:
    """The opened files at some indices.

    Args:
        features: all features.
        medium: the column of the files.
        indices: of the features to open.
        opener: opens one value of the column.

    Raises:
        UsageError: a file cannot be opened; names the row and, if it has one, the file.
    """
    column: Any = features.inputs[medium]
    opened = []
    # All rows at once: one by one, a column of `datasets` takes five times as long.
    for index, value in zip(indices, column[list(indices)], strict=True):
        try:
            opened.append(opener(value))
        except UsageError as error:
            number = features.inputs["row"][index]
            raise UsageError(f"row {number}: {error}") from None
    return opened
