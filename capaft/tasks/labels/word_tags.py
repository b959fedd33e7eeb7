"""The words of rows and the tag of each, whatever type the tags have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from capaft.data.lazy import ColumnValues, Derived
from capaft.support.errors import UsageError
from capaft.tasks.base.columns import Columns, describe_row

if TYPE_CHECKING:
    from datasets import Dataset


def tag_feature(rows: Dataset, columns: Columns) -> Any:
    """The feature of a single tag."""
    return rows.features[columns.label].feature


def is_tag(tag: Any) -> bool:
    """True if a value is a tag; negative numbers mark words that are not scored."""
    return tag not in (None, "") and not (isinstance(tag, int) and tag < 0)


def words_of(rows: Dataset, columns: Columns) -> Sequence[list[str]]:
    """The words of each row, at least one, read when they are needed.

    Raises:
        UsageError: a row has none, or lacks one.
    """
    words = ColumnValues(rows, columns.text)
    for row, texts in enumerate(words):
        if not texts or None in texts:
            what = "a word is missing" if texts else "there are no words"
            where = f"{describe_row(rows, columns, row)}: {what} in column {columns.text!r}"
            raise UsageError(f"{where}; fill it in or drop the row")
    return words


def tag_names(rows: Dataset, columns: Columns) -> Sequence[list[str | None]]:
    """The name of each word's tag, by row, read when they are needed; None for no tag.

    Raises:
        UsageError: a row cannot be used, as `words_of` and `tag_faults` say.
    """
    words_of(rows, columns)
    for row, fault in tag_faults(rows, columns).items():
        raise UsageError(f"{describe_row(rows, columns, row)}: {fault}; correct it or drop the row")
    names = getattr(tag_feature(rows, columns), "names", None)
    return Derived(
        lambda tags: [(names[tag] if names else str(tag)) if is_tag(tag) else None for tag in tags],
        ColumnValues(rows, str(columns.label)),
    )


def tag_faults(rows: Dataset, columns: Columns) -> dict[int, str]:
    """Rows whose words and tags do not go together, or with a tag that is no class, each with what is wrong."""
    words, tags = ColumnValues(rows, columns.text), ColumnValues(rows, str(columns.label))
    names = getattr(tag_feature(rows, columns), "names", None)
    pairs = enumerate(zip(words, tags, strict=True))
    return {row: fault for row, (texts, of_row) in pairs if (fault := _fault(columns, texts, of_row or (), names))}


def _fault(columns: Columns, words: Sequence[str], tags: Sequence[Any], names: Sequence[str] | None) -> str:
    """The reason why a row cannot be used; empty if it can."""
    if len(tags) != len(words):
        return f"{len(words)} words in column {columns.text!r} but {len(tags)} tags in column {columns.label!r}"
    if names and any(is_tag(tag) and tag >= len(names) for tag in tags):
        return f"a tag in column {columns.label!r} is none of its {len(names)} classes"
    return ""
