"""Texts that go in and texts that should come out: which columns hold them, and how a row is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import datasets

from capaft.support.errors import UsageError
from capaft.tasks.base.columns import Columns, cell_kind, column_values, find_column, is_text, plain_name, row_numbers

if TYPE_CHECKING:
    from datasets import Dataset

# Usual names of what goes in, and of what should come out, the preferred ones first.
_PAIRS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("prompt", ("completion", "response", "answer", "output")),
    ("instruction", ("output", "response", "completion", "answer")),
    ("question", ("answer", "response")),
    ("mr", ("references", "refs", "ref")),
    ("meaningrepresentation", ("references", "humanreference", "target")),
    ("tripleset", ("references", "target")),
    ("source", ("references", "target", "targets")),
    ("src", ("tgt", "trg", "ref", "refs")),
    ("document", ("summary",)),
    ("article", ("highlights", "summary", "abstract")),
    ("dialogue", ("summary",)),
    ("report", ("summary",)),
    ("text", ("summary", "target", "completion")),
    ("input", ("output", "references", "target", "completion", "response")),
    ("inputs", ("targets", "outputs")),
    ("query", ("response", "answer")),
    ("context", ("response",)),
)
_FURTHER = {"instruction": (("input", "context"),)}
_SUMMARIES = ("summary", "highlights", "abstract")
# What stands between the items of a source that is a list, and of lists within it: triples are "s : r : o | s : r : o",
# as in the experiments of LoRA (Hu et al. 2021) on DART and WebNLG.
_BETWEEN = (" | ", " : ")


@dataclass(frozen=True)
class Pair:
    """A row as a task reads it.

    Attributes:
        row: its number, from 1.
        source: the prefix, the text and, on a line of its own, the further text if there is any.
        references: what should come out: one text, or several that are equally right.
    """

    row: int
    source: str
    references: tuple[str, ...]


def recognise_text_pairs(rows: Dataset, given: Mapping[str, str | None]) -> Columns | None:
    """The columns of source and target, or None where neither names nor the user tell them.

    Columns of a dictionary `translation` go by its keys: the first is the source, the second the target. A given
    source may be a list, as of triples; without a target it has one only if they are a usual pair. Of a target and
    its references the references are taken where every row has some: GEM's rows for training have none.

    Raises:
        UsageError: a given column is not there or holds no text.
    """
    flat = _flat(rows)
    text, pair, label = (given.get(role) for role in ("text", "pair", "label"))
    fits = is_text if text is None else _is_source
    if text is not None:
        find_column(flat, "text", text, (), fits, "text or lists of texts")
    languages = [plain_name(name) for name in flat.column_names if name not in rows.column_names]
    table = tuple((first, tuple(each for each in languages if each != first)) for first in languages) or _PAIRS
    usual = [
        (first, seconds)
        for first, seconds in table
        if (text is None or plain_name(text) == first) and (label is None or plain_name(label) in seconds)
    ]
    # A source of an unusual name says nothing of what its target is called.
    for first, seconds in usual or (table if label is not None else ()):
        source = find_column(flat, "text", text, ((first,),), fits, "text or lists of texts", (label,))
        names = [(each,) for each in seconds if each != "references" or _has_references(flat)]
        target = find_column(flat, "label", label, names, _is_target, "text or a list of texts")
        further = find_column(flat, "pair", pair, _FURTHER.get(first, ()), is_text, "text", (source, target))
        if source is not None and target is not None:
            return Columns(source, further, target)
    return None


def are_summaries(columns: Columns) -> bool:
    """Whether the target's name says that it sums up the source."""
    return columns.label is not None and columns.label.lower().endswith(_SUMMARIES)


def check_pairs(rows: Dataset, columns: Columns) -> None:
    """Make sure that there are references to compare with.

    Raises:
        UsageError: no column holds them, or as `read`.
    """
    if columns.label is None:
        listed = ", ".join(_flat(rows).column_names)
        raise UsageError(f"no column holds what should come out; choose one with --label-column among {listed}")
    read_pairs(rows, columns, "", each=False)


def read_pairs(rows: Dataset, columns: Columns, prefix: str, *, each: bool) -> list[Pair]:
    """The pairs of a split.

    Args:
        rows: the split.
        columns: its columns; without a label there are no references.
        prefix: put before each source.
        each: make one pair of each reference, not one of each row.

    Raises:
        UsageError: a row has no source, or no target.
    """
    flat = _flat(rows)
    firsts = [_joined(value, *_BETWEEN) for value in column_values(flat, columns.text)]
    if None in firsts:
        row = row_numbers(rows)[firsts.index(None)]
        raise UsageError(f"row {row}: no text in column {columns.text!r}; fill it in or drop the row")
    further = [""] * len(firsts) if columns.pair is None else column_values(flat, columns.pair)
    sources = [prefix + (f"{text}\n{more}" if more else text) for text, more in zip(firsts, further, strict=True)]
    if columns.label is None:
        return [Pair(row, source, ()) for row, source in zip(row_numbers(rows), sources, strict=True)]
    found = []
    for row, source, value in zip(row_numbers(rows), sources, column_values(flat, columns.label), strict=True):
        several = (value,) if isinstance(value, str) else tuple(text for text in value or () if text is not None)
        if not several:
            raise UsageError(f"row {row}: no text in column {columns.label!r}; fill it in or drop the row")
        found += [Pair(row, source, (text,)) for text in several] if each else [Pair(row, source, several)]
    return found


def _is_target(feature: Any) -> bool:
    return is_text(getattr(feature, "feature", feature))


def _is_source(feature: Any) -> bool:
    """Whether a column holds texts, or lists of them, or lists of such lists."""
    for _ in _BETWEEN:
        feature = feature.feature if cell_kind(feature) == "list" else feature
    return is_text(feature)


def _joined(value: Any, between: str = "", *within: str) -> Any:
    """A source as one text; None if it, or a part of it, is none."""
    if not isinstance(value, list):
        return value
    parts = [_joined(each, *within) for each in value]
    return None if None in parts or not parts else between.join(parts)


def _has_references(rows: Dataset) -> bool:
    """Whether every row has something in the columns called references."""
    found = [name for name in rows.column_names if plain_name(name) == "references"]
    return all(value for name in found for value in column_values(rows, name))


def _flat(rows: Dataset) -> Dataset:
    """The rows, or the languages of their `translation` as columns, in the order in which it declares them."""
    name = next((name for name in rows.column_names if name.lower() == "translation"), "")
    feature = rows.features.get(name)
    languages = feature.languages if isinstance(feature, datasets.Translation) else feature
    if not isinstance(languages, list | tuple | dict):
        return rows
    nested = {f"{name}.{language}": language for language in languages}
    return rows.select_columns([name]).flatten().rename_columns(nested).select_columns(list(languages))
