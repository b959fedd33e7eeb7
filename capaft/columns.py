"""Which columns of a data set hold the text and the class of each row, and what the classes are.

A name that people use for the purpose decides first, then the type: the only column of text is the text, the
only column of integers or of few distinct words is the label. Where two would do, capaft asks instead of
guessing: a model trained on the wrong column looks like a model that learns badly.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import datasets

from capaft.errors import UsageError

MAX_CLASSES = 1000

# Names are compared in lower case without punctuation: "Sentence_1" is "sentence1". Earlier pairs and groups
# are preferred to later ones; within a group no name is better than another.
_PAIRS = (
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("text1", "text2"),
    ("texta", "textb"),
    ("1string", "2string"),
    ("query", "passage"),
    ("question", "passage"),
)
_TEXTS = (
    ("sentence", "text"),
    ("review", "content", "tweet", "comment", "utterance", "message", "document", "post", "body"),
    ("reviewtext", "commenttext", "headline", "question", "query", "description", "abstract", "title"),
)
_LABELS = (
    ("label", "labels"),
    ("class", "category", "target", "intent", "sentiment", "topic", "y", "goldlabel", "isduplicate"),
)
_ID = re.compile(r"(.*[^a-z])?(id|idx|guid|uuid|index)|unnamed: \d+|__index_level_\d+__", re.IGNORECASE)
_CAMEL_CASE_ID = re.compile(r".*[a-z]I[dD]")
_LONGEST_CLASS_NAME = 60

_TEXT, _CLASS, _INTEGER, _BOOL, _FLOAT, _OTHER = "text", "class", "integer", "bool", "float", "other"
_DTYPES = re.compile(r"(?P<text>(large_)?string)|(?P<integer>u?int\d+)|(?P<bool>bool)|(?P<float>float\d+)")


@dataclass(frozen=True)
class Columns:
    """The columns of a text classification data set; `pair` holds the second text where rows are pairs."""

    text: str
    pair: str | None
    label: str

    def describe(self) -> str:
        """One line for the log."""
        pair = "" if self.pair is None else f" and {self.pair!r}"
        return f"text from {self.text!r}{pair}, label from {self.label!r}"


def recognise(
    dataset: datasets.Dataset, *, text: str | None = None, pair: str | None = None, label: str | None = None
) -> Columns:
    """Find the columns by name, then by type. A given name is taken; a given text without a pair is single.

    Raises:
        UsageError: a given column is not there or not usable, or one that is not given cannot be told.
    """
    kinds = {name: _kind(feature) for name, feature in dataset.features.items()}
    _check_given(dataset, kinds, {"text": text, "pair": pair, "label": label})
    free = {name: kind for name, kind in kinds.items() if not _is_id(name) and name not in (text, pair, label)}
    if label is None:
        label = _by_name(dataset, "label", free, _LABELS)
        free.pop(label or "", None)
    if text is None:
        words = {name: kind for name, kind in free.items() if kind == _TEXT}
        text, pair = _pair_by_name(words, pair)
        text = text or _by_name(dataset, "text", words, _TEXTS) or _text_by_type(dataset, words)
    if label is None:
        label = _label_by_type(dataset, {name: free[name] for name in free if name not in (text, pair)})
    return Columns(text, pair, label)


def labels(train: datasets.Dataset, columns: Columns) -> list[str]:
    """The names of the classes, in the order of their indices.

    A `ClassLabel` keeps its order; integers and whole floats ascend; the rest is sorted as text.

    Raises:
        UsageError: a row has no label, or the column does not hold from two to `MAX_CLASSES` classes, fewer
            than there are rows.
    """
    names = _class_names(train, columns)
    present = set(names)
    if len(present) == 1:
        raise UsageError(f"every label in column {columns.label!r} is {names[0]!r}; give rows of two classes or more")
    feature = train.features[columns.label]
    if isinstance(feature, datasets.ClassLabel):
        return list(feature.names)
    if len(present) > MAX_CLASSES or len(present) == len(names):
        raise UsageError(
            f"column {columns.label!r} has {len(present)} different values in {len(names)} rows and does not "
            f"look like a label; choose one with --label-column among {_listed(train)}"
        )
    return sorted(present, key=int if _kind(feature) in (_INTEGER, _FLOAT) else None)


def encode_labels(dataset: datasets.Dataset, columns: Columns, labels: Sequence[str]) -> list[int]:
    """The class index of each row, shape `(rows,)`.

    Classes are matched by name, whatever order or type they have in this data set. Integers are indices where
    no class has an integer for its name.

    Raises:
        UsageError: a row has no label, or one that is not among `labels`.
    """
    index = {name: position for position, name in enumerate(labels)}
    if _kind(dataset.features[columns.label]) == _INTEGER and not any(map(_is_integer, labels)):
        index = {str(position): position for position in range(len(labels))}
    names = _class_names(dataset, columns)
    unknown = next((row for row, name in enumerate(names) if name not in index), None)
    if unknown is not None:
        known = ", ".join(labels[:10]) + (", ..." if len(labels) > 10 else "")
        raise UsageError(
            f"{_row(dataset, columns, unknown)}: the training data has no label {names[unknown]!r}"
            f"{_did_you_mean(names[unknown], labels)}; its labels are {known}"
        )
    return [index[name] for name in names]


def texts(dataset: datasets.Dataset, columns: Columns) -> tuple[list[str], list[str] | None]:
    """The text of each row and, if there are pairs, its second text.

    Raises:
        UsageError: a row has no text (an empty one is a text).
    """
    first = _values(dataset, columns.text)
    second = None if columns.pair is None else _values(dataset, columns.pair)
    for name, column in ((columns.text, first), (columns.pair, second)):
        if column is not None and None in column:
            raise UsageError(f"row {column.index(None) + 1}: no text in column {name!r}; fill it in or drop the row")
    return first, second


def _kind(feature: Any) -> str:
    if isinstance(feature, datasets.ClassLabel):
        return _CLASS
    match = _DTYPES.fullmatch(feature.dtype) if isinstance(feature, datasets.Value) else None
    return (match and match.lastgroup) or _OTHER


def _is_id(name: str) -> bool:
    return bool(_ID.fullmatch(name) or _CAMEL_CASE_ID.fullmatch(name))


def _check_given(dataset: datasets.Dataset, kinds: dict[str, str], given: dict[str, str | None]) -> None:
    names = {role: name for role, name in given.items() if name is not None}
    for role, name in names.items():
        option = f"--{role}-column {name}"
        if name not in kinds:
            hint = _did_you_mean(name, list(kinds))
            raise UsageError(f"{option}: there is no such column{hint}; the columns are {_listed(dataset)}")
        if kinds[name] == _OTHER or (role != "label" and kinds[name] != _TEXT):
            wanted = "one value a row" if role == "label" else "text"
            raise UsageError(f"{option}: this column does not hold {wanted}; the columns are {_listed(dataset)}")
    if len(set(names.values())) < len(names):
        options = ", ".join(f"--{role}-column {name}" for role, name in names.items())
        raise UsageError(f"{options}: name a different column with each option")


def _by_name(
    dataset: datasets.Dataset, role: str, kinds: dict[str, str], groups: Sequence[Sequence[str]]
) -> str | None:
    """The column with a name of the first group that matches any, if one does."""
    found: list[str] = []
    for group in groups:
        found = found or [name for name in kinds if _plain(name) in group]
    if len(found) > 1:
        _ask(dataset, role, f"{' and '.join(map(repr, found))} both could be")
    if any(kinds[name] == _OTHER for name in found):
        _ask(dataset, role, f"{found[0]!r} does not hold one value a row")
    return next(iter(found), None)


def _pair_by_name(words: dict[str, str], pair: str | None) -> tuple[str | None, str | None]:
    """Both columns of a pair, or the first one that belongs to a given second."""
    plain = {_plain(name): name for name in words}
    for first, second in _PAIRS:
        if first in plain and (second == _plain(pair) if pair else second in plain):
            return plain[first], pair or plain[second]
    return None, pair


def _text_by_type(dataset: datasets.Dataset, words: dict[str, str]) -> str:
    found = list(words)
    if len(found) > 1:
        found = [name for name in found if not _like_classes(dataset, name)]
    if len(found) != 1:
        _ask(dataset, "text", "several columns could be" if words else "there is no column of text")
    return found[0]


def _label_by_type(dataset: datasets.Dataset, kinds: dict[str, str]) -> str:
    usual = (_CLASS, _INTEGER, _BOOL)
    found = [n for n, kind in kinds.items() if kind in usual or (kind == _TEXT and _like_classes(dataset, n))]
    found = found or [name for name, kind in kinds.items() if kind == _FLOAT]
    if len(found) != 1:
        _ask(dataset, "label", "several columns could be" if found else "no column looks like one")
    return found[0]


def _like_classes(dataset: datasets.Dataset, name: str) -> bool:
    """Whether a column of text holds few different values, each twice on average, and none of them long."""
    distinct = dataset.unique(name)
    few = len(distinct) <= min(MAX_CLASSES, len(dataset) // 2)
    return few and all(len(value or "") <= _LONGEST_CLASS_NAME for value in distinct)


def _ask(dataset: datasets.Dataset, role: str, why: str) -> NoReturn:
    option = "--text-column (and --pair-column for pairs)" if role == "text" else "--label-column"
    raise UsageError(f"cannot tell which column is the {role} ({why}); choose with {option} among {_listed(dataset)}")


def _class_names(dataset: datasets.Dataset, columns: Columns) -> list[str]:
    """The name of each row's class, whatever type the column has."""
    feature = dataset.features[columns.label]
    kind = _kind(feature)
    values = _values(dataset, columns.label)
    if kind in (_INTEGER, _CLASS) and values and set(values) == {-1}:
        raise UsageError(f"every label in column {columns.label!r} is -1, which marks rows whose label is withheld")
    names = []
    for row, value in enumerate(values):
        # NaN is the value that differs from itself.
        if value in (None, "") or value != value or (kind == _CLASS and not 0 <= value < len(feature.names)):
            where = f"{_row(dataset, columns, row)}: no label in column {columns.label!r}"
            raise UsageError(f"{where}; fill it in or drop the row")
        if kind == _FLOAT and value % 1 != 0:
            raise UsageError(
                f"{_row(dataset, columns, row)}: the label {value} is a fraction, which makes this "
                "regression, not classification; choose a column of classes with --label-column"
            )
        names.append(feature.names[value] if kind == _CLASS else str(int(value) if kind == _FLOAT else value))
    return names


def _values(dataset: datasets.Dataset, name: str) -> list[Any]:
    return list(dataset.with_format(None)[name][:])


def _row(dataset: datasets.Dataset, columns: Columns, row: int) -> str:
    """A row by its number from 1 and by its text, since a split may have renumbered the rows of the file."""
    text = " ".join(str(_values(dataset.select([row]), columns.text)[0]).split())
    return f"row {row + 1} ({text[:37] + '...' if len(text) > 40 else text!r})"


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name.lower())


def _is_integer(name: str) -> bool:
    return re.fullmatch(r"-?\d+", name) is not None


def _did_you_mean(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _listed(dataset: datasets.Dataset) -> str:
    """The columns with their types."""
    features = dataset.features.items()
    return ", ".join(f"{name} ({getattr(feature, 'dtype', None) or 'nested'})" for name, feature in features)
