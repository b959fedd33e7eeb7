"""The words of rows that nobody tagged, and the spans that predicted tags make of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from capaft.data.lazy import ColumnValues
from capaft.data.spans import word_places
from capaft.support.errors import UsageError
from capaft.tasks.base.columns import Columns, describe_row
from capaft.tasks.base.task_answers import Record
from capaft.tasks.labels.problem import rounded
from capaft.tasks.labels.word_tags import words_of

if TYPE_CHECKING:
    from datasets import Dataset

# The other schemes in the letters of IOBES.
_AS_IOBES = str.maketrans("LUMW", "ESIS")


@dataclass(frozen=True)
class WordsInText:
    """Words and where they stand.

    Attributes:
        text: the text; of words in a list, these with a blank between them.
        words: the words.
        places: the first character of each word in the text, and the one behind its last.
    """

    text: str
    words: list[str]
    places: list[tuple[int, int]]


def as_iobes(tag: str) -> str:
    """A tag of any scheme for entities, in the letters of IOBES."""
    return tag[0].translate(_AS_IOBES) + tag[1:]


def read_words(rows: Dataset, columns: Columns) -> list[WordsInText]:
    """The words of each row: as its list has them, or of a text as texts with marked spans are cut.

    Raises:
        UsageError: a row has no word, or lacks one.
    """
    if not isinstance(getattr(rows.features[columns.text], "dtype", None), str):
        return [_joined(words) for words in words_of(rows, columns)]
    return [
        _cut(text) or _refuse(rows, columns, row) for row, text in enumerate(map(str, ColumnValues(rows, columns.text)))
    ]


def _joined(words: Sequence[str]) -> WordsInText:
    ends = np.cumsum([len(word) + 1 for word in words]).tolist()
    return WordsInText(
        " ".join(words), list(words), [(end - 1 - len(word), end - 1) for word, end in zip(words, ends, strict=True)]
    )


def _cut(text: str) -> WordsInText | None:
    places = word_places(text)
    return WordsInText(text, [text[start:end] for start, end in places], places) if places else None


def _refuse(rows: Dataset, columns: Columns, row: int) -> Any:
    raise UsageError(f"{describe_row(rows, columns, row)}: there are no words in column {columns.text!r}")


def tagged_words(source: WordsInText, tags: Mapping[int, tuple[str, float]], *, entities: bool) -> Record:
    """The words, their tags, and the spans that these make.

    Args:
        source: the words.
        tags: the tag of each word that the model has read, with its probability, by position.
        entities: the tags mark entities; otherwise each word with a tag is a span.
    """
    names = [tags[at][0] if at in tags else None for at in range(len(source.words))]
    spans = _entities(names) if entities else [(name, at, at + 1) for at, name in enumerate(names) if name is not None]
    return {"words": source.words, "tags": names, "spans": [_span(source, tags, *span) for span in spans]}


def _entities(names: Sequence[str | None]) -> list[tuple[str, int, int]]:
    """The entities as seqeval, and so the scores, count them: type, first word, and the one behind the last."""
    from seqeval.metrics.sequence_labeling import get_entities

    tags = ["O" if name is None else as_iobes(name) for name in names]
    return [(kind, first, last + 1) for kind, first, last in get_entities(tags)]


def _span(source: WordsInText, tags: Mapping[int, tuple[str, float]], label: str, first: int, end: int) -> Record:
    start, stop = source.places[first][0], source.places[end - 1][1]
    probabilities = [tags[at][1] for at in range(first, end) if at in tags]
    return {
        "label": label,
        "text": source.text[start:stop],
        "words": [first, end],
        "characters": [start, stop],
        "probability": rounded(np.mean(probabilities)),
    }
