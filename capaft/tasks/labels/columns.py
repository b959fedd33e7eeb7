"""Recognition of texts and their labels among the columns of a split: by name, else by type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from capaft.tasks.base.columns import (
    Columns,
    ask_for_column,
    cell_kind,
    find_column,
    is_id,
    is_text,
    plain_name,
)
from capaft.tasks.base.doubts import refuse_headless
from capaft.tasks.labels.kind import holds_numbers
from capaft.tasks.labels.problem import MAX_CLASSES

if TYPE_CHECKING:
    from datasets import Dataset

# Names are compared in lower case without punctuation. Earlier pairs and groups are preferred to later ones; within a
# group no name is better than another.
_PAIRS = (
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("text1", "text2"),
    # As rows are called that come without columns.
    ("text", "pair"),
    ("texta", "textb"),
    ("1string", "2string"),
    ("query", "passage"),
    ("question", "passage"),
    ("question", "answer"),
    ("question", "context"),
    ("query", "document"),
    ("query", "text"),
    ("text", "response"),
    ("context", "response"),
)
# Second texts that may be the label themselves, where no other column is called one.
_REPLIES = ("answer", "response")
_TEXTS = (
    ("sentence", "text"),
    ("review", "content", "tweet", "comment", "utterance", "message", "document", "post", "body"),
    ("reviewtext", "commenttext", "headline", "question", "query", "description", "abstract", "title"),
)
_LABELS = (
    ("label", "labels"),
    ("class", "category", "target", "intent", "sentiment", "topic", "y", "goldlabel", "isduplicate"),
    ("classes", "categories", "topics", "genres", "emotions", "score", "similarityscore", "rating", "stars"),
)
_LONGEST_CLASS_NAME = 60
# Never classes, whatever they look like, unless the user says so.
_NO_LABELS = ("timestamp", "time", "date", "datetime", "createdat", "created", "url", "uri", "link")
# With fewer rows, a number may be the only one of its class by chance.
_FEWEST_NUMBERS = 20


def recognise_labelled_texts(rows: Dataset, named: Mapping[str, str | None]) -> Columns:
    """Find the columns by name, then by type. A named text without a named pair is single.

    Several labels with a column of 0 and 1 each are given by the names of these columns: `a,b,c`.

    Args:
        rows: the split.
        named: the columns that the user named, by role.

    Raises:
        UsageError: a named column is missing or not usable, or another one cannot be determined.
    """
    text, pair, label = named.get("text"), named.get("pair"), named.get("label")
    choices = _choices(rows, label)
    if choices:
        for choice in choices:
            find_column(rows, "label", choice, (), _is_flag, "0 or 1", (text, pair))
        label = None
    else:
        label = find_column(rows, "label", label, _LABELS, _is_label, "a label, labels or a number a row", (text, pair))
    taken = (label, *choices)
    text = find_column(rows, "text", text, (), is_text, "text", taken)
    pair = find_column(rows, "pair", pair, (), is_text, "text", (*taken, text))
    if text is None:
        text, pair = _unnamed_texts(rows, pair, (*taken, pair), unsure=label is None and not choices)
    if label is None and not choices:
        label = _label_by_type(rows, (text, pair))
        refuse_headless(rows, text, [label])
    return Columns(text, pair, label, choices)


def recognise_texts(rows: Dataset, named: Mapping[str, str | None]) -> Columns:
    """Find the columns of texts to classify, of which nobody knows the labels, in the same way.

    Args:
        rows: the rows.
        named: the columns that the user, or the training, names, by role.

    Raises:
        UsageError: a named column is missing or not usable, or several could be the text.
    """
    text = find_column(rows, "text", named.get("text"), (), is_text, "text")
    pair = find_column(rows, "pair", named.get("pair"), (), is_text, "text", (text,))
    return Columns(text, pair) if text else Columns(*_unnamed_texts(rows, pair, (pair,), unsure=False))


def _unnamed_texts(
    rows: Dataset, pair: str | None, taken: Sequence[str | None], *, unsure: bool
) -> tuple[str, str | None]:
    """The column of the text, and that of its pair if there is one, where nobody named the first.

    Args:
        rows: the split.
        pair: the named column of the second text, if any.
        taken: columns that have another role.
        unsure: the label may be among the texts.
    """
    words = [n for n, feature in rows.features.items() if is_text(feature) and n not in taken and not is_id(n)]
    sure = [n for n in words if not (unsure and plain_name(n) in _REPLIES and _like_classes(rows, n))]
    text, pair = _pair_by_name(sure, pair)
    return text or find_column(rows, "text", None, _TEXTS, is_text, "text", taken) or _text_by_type(rows, words), pair


def _is_flag(feature: Any) -> bool:
    return cell_kind(feature) in ("integer", "bool", "float", "class")


def _is_label(feature: Any) -> bool:
    return cell_kind(feature) != "other"


def _choices(rows: Dataset, label: str | None) -> tuple[str, ...]:
    """The columns that a list of names stands for, if it is one and not itself the name of a column."""
    if label is None or "," not in label or label in rows.column_names:
        return ()
    return tuple(dict.fromkeys(name.strip() for name in label.split(",")))


def _pair_by_name(words: Sequence[str], pair: str | None) -> tuple[str | None, str | None]:
    """Both columns of a usual pair, or the first column that belongs to a named second one."""
    names = {plain_name(name): name for name in words}
    for first, second in _PAIRS:
        if first in names and (second == plain_name(pair) if pair else second in names):
            return names[first], pair or names[second]
    return None, pair


def _text_by_type(rows: Dataset, words: Sequence[str]) -> str:
    texts = list(words)
    if len(texts) > 1:
        texts = [name for name in texts if not _like_classes(rows, name) and not holds_numbers(rows, name)]
    if len(texts) != 1:
        ask_for_column(rows, "text", "several columns could be" if words else "there is no column of text")
    return texts[0]


def _label_by_type(rows: Dataset, taken: Sequence[str | None]) -> str:
    kinds = {n: cell_kind(feature) for n, feature in rows.features.items() if n not in taken and not _is_note(n)}
    usual = ("class", "integer", "bool")
    labels = [n for n, kind in kinds.items() if kind in usual or (kind == "text" and _like_classes(rows, n))]
    labels = labels or [
        n for n, kind in kinds.items() if kind == "float" or (kind == "text" and holds_numbers(rows, n))
    ]
    if len(labels) == 1 and kinds[labels[0]] == "integer" and _number_rows(rows, labels[0]):
        ask_for_column(rows, "label", f"{labels[0]!r} has a number of its own in most rows")
    if len(labels) != 1:
        ask_for_column(rows, "label", "several columns could be" if labels else "no column looks like one")
    return labels[0]


def _is_note(name: str) -> bool:
    return is_id(name) or plain_name(name) in _NO_LABELS


def _number_rows(rows: Dataset, name: str) -> bool:
    """True if a column has a different integer in most rows, like a time or a key."""
    return len(rows) >= _FEWEST_NUMBERS and len(rows.unique(name)) > len(rows) // 2


def _like_classes(rows: Dataset, name: str) -> bool:
    """True if a column of text holds few different values, each twice on average, and none of them long."""
    distinct = rows.unique(name)
    few = len(distinct) <= min(MAX_CLASSES, len(rows) // 2)
    return few and all(len(value or "") <= _LONGEST_CLASS_NAME for value in distinct)
