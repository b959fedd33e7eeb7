"""Pairs of a source text and its target texts: which columns hold them, and how a row is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import datasets

from capaft.support.errors import UsageError
from capaft.tasks.base.columns import (
    Columns,
    ask_for_column,
    cell_kind,
    column_values,
    find_column,
    is_id,
    is_text,
    plain_name,
    row_numbers,
)
from capaft.tasks.language.plain_text import recognise_plain_text

if TYPE_CHECKING:
    from datasets import Dataset

# Usual names of sources with those of their targets, preferred ones first.
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
# Separators in a source that is a list, and in the lists within it: triples become "s : r : o | s : r : o", as in the
# experiments of LoRA (Hu et al. 2021) on DART and WebNLG.
_SEPARATORS = (" | ", " : ")


@dataclass(frozen=True)
class Pair:
    """A source and its references.

    Attributes:
        row: number of the row, from 1.
        source: the prefix, the text and, on a separate line, the further text, if any.
        references: the target text, or several that are equally right.
    """

    row: int
    source: str
    references: tuple[str, ...]


def recognise_text_pairs(rows: Dataset, user_columns: Mapping[str, str | None]) -> Columns | None:
    """The columns of source and target, or None if neither usual names nor the user's choice determine them.

    The languages of a column `translation` are read as columns: the first is the source, the second the target. A
    source that the user chose may hold lists, such as triples; unless the user also chose its target, one is found only
    if the two are a usual pair. References are preferred to a single target if every row has some: GEM's training rows
    have none. If some rows have none, references are the target where there is no single one.

    Raises:
        UsageError: a column that the user chose is missing or does not hold text.
    """
    flat = _flat(rows)
    text, pair, label = (user_columns.get(role) for role in ("text", "pair", "label"))
    fits = is_text if text is None else _is_source
    if text is not None:
        find_column(flat, "text", text, (), fits, "text or lists of texts")
    languages = [plain_name(name) for name in flat.column_names if name not in rows.column_names]
    pairs = tuple((first, tuple(other for other in languages if other != first)) for first in languages) or _PAIRS
    usual = [
        (source_name, target_names)
        for source_name, target_names in pairs
        if (text is None or plain_name(text) == source_name) and (label is None or plain_name(label) in target_names)
    ]
    # The name of an unusual source does not determine its target, so the user has to choose that as well.
    for source_name, target_names in usual or (pairs if label is not None else ()):
        source = find_column(flat, "text", text, ((source_name,),), fits, "text or lists of texts", (label,))
        names = [(name,) for name in _preferred(target_names, flat)]
        target = find_column(flat, "label", label, names, _is_target, "text or a list of texts")
        further = _further(flat, pair, source, target)
        if source is not None and target is not None:
            return Columns(source, further, target)
    return None


def recognise_source(rows: Dataset, user_columns: Mapping[str, str | None]) -> Columns:
    """The columns of a source without a target: the text, and the further text of the same source, if any.

    Raises:
        UsageError: the user chose a target, a column that the user chose does not hold text, or no column is surely the
            source.
    """
    flat = _flat(rows)
    text, pair, label = (user_columns.get(role) for role in ("text", "pair", "label"))
    if label is not None:
        ask_for_column(rows, "text", f"no usual name goes with the target {label}")
    if text is not None:
        find_column(flat, "text", text, (), _is_source, "text or lists of texts")
        return Columns(text, _further(flat, pair, text))
    texts = {name for name, feature in flat.features.items() if is_text(feature) and not is_id(name)}
    for source_name, _ in _PAIRS:
        source = find_column(flat, "text", None, ((source_name,),), is_text, "text", (pair,))
        further = _further(flat, pair, source) if source else None
        if source and texts <= {source, further}:
            return Columns(source, further)
    other = flat.remove_columns([pair]) if pair in flat.column_names else flat
    source = recognise_plain_text(other, {}).text
    return Columns(source, _further(flat, pair, source))


def are_summaries(columns: Columns) -> bool:
    """True if the target's name is that of a summary."""
    return columns.label is not None and columns.label.lower().endswith(_SUMMARIES)


def check_pairs(rows: Dataset, columns: Columns) -> None:
    """Check that every row has references.

    Raises:
        UsageError: no column holds them, or as `read_pairs`.
    """
    if columns.label is None:
        listed = ", ".join(_flat(rows).column_names)
        raise UsageError(f"no column holds the target; choose one with --label-column among {listed}")
    read_pairs(rows, columns, "", per_reference=False)


def read_pairs(rows: Dataset, columns: Columns, prefix: str, *, per_reference: bool) -> list[Pair]:
    """The pairs of a split.

    Args:
        rows: the split.
        columns: its columns; without a label there are no references.
        prefix: put before each source.
        per_reference: make one pair per reference rather than one per row.

    Raises:
        UsageError: a row has no source, or no target.
    """
    flat = _flat(rows)
    texts = [_joined(value, *_SEPARATORS) for value in column_values(flat, columns.text)]
    if None in texts:
        row = row_numbers(rows)[texts.index(None)]
        raise UsageError(f"row {row}: no text in column {columns.text!r}; fill it in or drop the row")
    further = [""] * len(texts) if columns.pair is None else column_values(flat, columns.pair)
    sources = [prefix + (f"{text}\n{more}" if more else text) for text, more in zip(texts, further, strict=True)]
    if columns.label is None:
        return [Pair(row, source, ()) for row, source in zip(row_numbers(rows), sources, strict=True)]
    pairs = []
    for row, source, value in zip(row_numbers(rows), sources, column_values(flat, columns.label), strict=True):
        references = (value,) if isinstance(value, str) else tuple(text for text in value or () if text is not None)
        if not references:
            raise UsageError(f"row {row}: no text in column {columns.label!r}; fill it in or drop the row")
        groups = [(reference,) for reference in references] if per_reference else [references]
        pairs += [Pair(row, source, group) for group in groups]
    return pairs


def _further(rows: Dataset, pair: str | None, *taken: str | None) -> str | None:
    """The further text of a source, which is the first of the taken columns."""
    names = _FURTHER.get(plain_name(taken[0] or ""), ())
    return find_column(rows, "pair", pair, names, is_text, "text", taken)


def _is_target(feature: Any) -> bool:
    return is_text(getattr(feature, "feature", feature))


def _is_source(feature: Any) -> bool:
    """True if a column holds texts, lists of texts, or lists of such lists."""
    for _ in _SEPARATORS:
        feature = feature.feature if cell_kind(feature) == "list" else feature
    return is_text(feature)


def _joined(value: Any, separator: str = "", *inner_separators: str) -> Any:
    """A source as one text; None if it or any part of it is None or an empty list."""
    if not isinstance(value, list):
        return value
    parts = [_joined(part, *inner_separators) for part in value]
    return None if None in parts or not parts else separator.join(parts)


def _preferred(names: tuple[str, ...], rows: Dataset) -> list[str]:
    """Usual names of a target, those of columns without any value left out: references that rows lack come last."""
    columns = [name for name in rows.column_names if plain_name(name) == "references"]
    has = [bool(value) for name in columns for value in column_values(rows, name)]
    others = [name for name in names if name != "references"]
    return list(names) if all(has) else [*others, "references"] if any(has) else others


def _flat(rows: Dataset) -> Dataset:
    """The rows, or the languages of their `translation` as columns, in its own order."""
    name = next((name for name in rows.column_names if name.lower() == "translation"), "")
    feature = rows.features.get(name)
    languages = feature.languages if isinstance(feature, datasets.Translation) else feature
    if not isinstance(languages, list | tuple | dict):
        return rows
    nested = {f"{name}.{language}": language for language in languages}
    return rows.select_columns([name]).flatten().rename_columns(nested).select_columns(list(languages))
