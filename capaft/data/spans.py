"""Turn texts with marked spans into words with tags: a span is a start, an end and a label, in characters of the text.

Annotation tools write them in their own ways: doccano and spaCy as lists `[start, end, label]`, Prodigy, spaCy and
Hugging Face's pipelines as records, Label Studio as records within records. Here each text becomes the list of its
words, and its spans the list of the words' tags in IOB2 (Ramshaw and Marcus, 1995), in the columns where they stood.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

import regex

from capaft.data.label_studio import unwrapped
from capaft.data.reading import Reading
from capaft.support.counting import agreeing
from capaft.support.faults import leave_out

Columns = Mapping[str, Collection[Any]]

_TEXTS = ("text", "sentence", "content", "data", "document", "body")
_SPANS = ("entities", "spans", "ents", "labels", "label", "ner", "tags", "annotations", "annotation")
# Beside a column of classes, spans are notes.
_CLASSES = frozenset({"label", "labels", "class", "category", "target", "intent", "sentiment"})
_STARTS = ("start", "start_offset", "start_char", "begin", "startOffset")
_ENDS = ("end", "end_offset", "end_char", "stop", "endOffset")
_LABELS = ("label", "labels", "type", "tag", "entity", "entity_group", "entity_type", "category", "class")
# Prodigy's answers of an annotator; the others are mistakes.
_ACCEPTED = frozenset({"accept"})
_ANSWERS = frozenset({"accept", "reject", "ignore"})
# Scripts without blanks between words are taken by their characters, as BERT's tokenizers do.
_WORD = regex.compile(
    r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]\p{M}*|[\p{L}\p{M}\p{N}_]+|\S"
)


@dataclass(frozen=True)
class Span:
    """A part of a text: its first character, the one behind its last, and its label."""

    start: int
    end: int
    label: str


def tag_words(source: str, columns: Columns, reading: Reading) -> Columns:
    """The columns with the texts as words and the spans as their tags, without rows that an annotator rejected.

    Columns without spans are unchanged otherwise.

    Rows whose spans overlap, cut a word or lie outside of the text are left out, if they are few.

    Args:
        source: the file, for messages.
        columns: values by column, of equal lengths.
        reading: choices of the reader.

    Raises:
        UsageError: many rows have such spans.
    """
    columns = _accepted(source, unwrapped(columns), reading)
    spans = next((name for name in _SPANS if name in columns and _are_spans(columns[name])), None)
    if spans is None:
        return columns
    text = next((name for name in columns if name.lower() in _TEXTS and _are_texts(columns[name])), None)
    if text is None:
        return columns
    if any(name.lower() in _CLASSES and name != spans and any(columns[name]) for name in columns):
        return columns
    columns = {name: list(values) for name, values in columns.items()}
    words: list[Any] = []
    tags: list[Any] = []
    faults: dict[int, str] = {}
    offsets = columns.pop("tokens", [None] * len(columns[text]))
    for row, (characters, marked, tokens) in enumerate(zip(columns[text], columns[spans], offsets, strict=True)):
        parts = [] if characters is None else _words(characters, tokens)
        try:
            marks = [_span(mark) for mark in marked or ()]
            tags.append(_tags(characters or "", parts, marks))
        except ValueError as error:
            faults[row] = str(error)
            tags.append([])
        words.append([characters[start:end] for start, end in parts])
    if faults:
        named = [f"row {row + 1}: {fault}" for row, fault in faults.items()]
        leave_out(named, len(words), f"rows of {source}", strict=reading.strict, say=reading.say)
    reading.say(f"{source}: spans in {spans!r} become tags of the words in {text!r}")
    tagged = columns | {text: words, spans: tags}
    return {name: [v for row, v in enumerate(values) if row not in faults] for name, values in tagged.items()}


def may_be_span(fields: Collection[str]) -> bool:
    """True if a record of these fields can be a span."""
    return all(any(name in fields for name in names) for names in (_STARTS, _ENDS, _LABELS))


def _are_texts(values: Collection[Any]) -> bool:
    return all(value is None or isinstance(value, str) for value in values) and any(values)


def _are_spans(values: Collection[Any]) -> bool:
    """True if each value is a list of spans, and one has any."""
    marked = False
    for value in values:
        if not (value is None or isinstance(value, list)) or not all(map(_is_span, value or ())):
            return False
        marked = marked or bool(value)
    return marked


def _is_span(mark: Any) -> bool:
    if isinstance(mark, Mapping):
        return may_be_span(mark)
    return isinstance(mark, list) and len(mark) == 3 and isinstance(mark[0], int) and isinstance(mark[2], str)


def _span(mark: Any) -> Span:
    """A span from whatever holds it.

    Raises:
        ValueError: its start or end is not a whole number, or it has not one label.
    """
    if isinstance(mark, Mapping):
        mark = [next(mark[name] for name in names if name in mark) for names in (_STARTS, _ENDS, _LABELS)]
    start, end, label = mark
    if isinstance(label, list) and len(label) == 1:
        label = label[0]
    if not all(isinstance(place, int) and not isinstance(place, bool) for place in (start, end)):
        raise ValueError(f"a span from {start!r} to {end!r} has no places in the text")
    if not isinstance(label, str | int) or label == "":
        raise ValueError(f"the span from {start} to {end} has the label {label!r}, not one text")
    return Span(start, end, str(label))


def word_places(text: str) -> list[tuple[int, int]]:
    """Start and end of each word of a text: letters and digits, or a single other character."""
    return [word.span() for word in _WORD.finditer(text)]


def _words(text: str, tokens: Any) -> list[tuple[int, int]]:
    """Start and end of each word: the tool's own tokens, where a row has them with their places."""
    if isinstance(tokens, list) and tokens and all(isinstance(token, Mapping) for token in tokens):
        places = [(token.get("start"), token.get("end")) for token in tokens]
        if all(isinstance(start, int) and isinstance(end, int) for start, end in places):
            return [(start, end) for start, end in places if text[start:end].strip()]
    return word_places(text)


def _tags(text: str, words: Sequence[tuple[int, int]], spans: Sequence[Span]) -> list[str]:
    """The tag of each word, in IOB2.

    Raises:
        ValueError: a span lies outside of the text, cuts a word, holds none, or overlaps another.
    """
    tags = ["O"] * len(words)
    starts = {start: at for at, (start, _) in enumerate(words)}
    ends = {end: at for at, (_, end) in enumerate(words)}
    for span in spans:
        marked = text[max(span.start, 0) : span.end]
        if not 0 <= span.start < span.end <= len(text) or not marked.strip():
            raise ValueError(f"the span from {span.start} to {span.end} is not within the text")
        # Annotators often mark a blank beside a word.
        first = starts.get(span.start + len(marked) - len(marked.lstrip()))
        last = ends.get(span.end - len(marked) + len(marked.rstrip()))
        if first is None or last is None:
            raise ValueError(f"the span {marked.strip()[:40]!r} cuts a word")
        if any(tag != "O" for tag in tags[first : last + 1]):
            raise ValueError(f"the span {marked.strip()[:40]!r} overlaps another")
        tags[first : last + 1] = [f"B-{span.label}", *[f"I-{span.label}"] * (last - first)]
    return tags


def _accepted(source: str, columns: Columns, reading: Reading) -> Columns:
    """The rows that an annotator accepted, where a column says so."""
    answers = columns.get("answer", [])
    if "text" not in columns or not answers or not all(str(answer) in _ANSWERS for answer in answers):
        return columns
    columns = {name: values for name, values in columns.items() if name != "answer"}
    accepted = [answer in _ACCEPTED for answer in answers]
    if lost := accepted.count(False):
        are = agreeing(lost, "is", "are")
        reading.say(f"{source}: {lost} of {len(answers)} rows {are} not accepted, and {are} left out")
    return {name: list(compress(values, accepted)) for name, values in columns.items()}
