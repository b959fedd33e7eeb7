"""Gather the rows of a table with a word and its tag each to one row a sentence."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from capaft.data.reading import Reading
from capaft.data.tag_scheme import are_chunk_tags
from capaft.support.counting import agreeing, counted
from capaft.support.errors import UsageError

# In lower case and without all else.
_WORDS = ("word", "words", "token", "tokens", "form")
_SENTENCES = frozenset(
    f"{noun}{number}" for noun in ("sentence", "sent") for number in ("", "id", "no", "number", "idx", "index", "num")
)
_DOCUMENTS = frozenset({"doc", "docid", "document", "documentid"})
# The number of a sentence, also as in "Sentence: 1"; not its words.
_NUMBER = re.compile(r"\S*\s?\d+")
_FEWEST_WORDS = 1.5
_AT_A_TIME = 10_000


def gather_words(source: str, table: pa.Table, reading: Reading) -> pa.Table:
    """A table with a row a sentence, if the rows are words of numbered sentences; the words and tags become lists.

    Args:
        source: the file, for messages.
        table: the rows.
        reading: choices of the reader.

    Raises:
        UsageError: the rows are words with tags, but nothing says where a sentence ends, or its rows stand apart.
    """
    texts = [field.name for field in table.schema if pa.types.is_string(field.type)]
    word = next((name for name in texts if _plain(name) in _WORDS), None)
    numbers = [name for name in table.column_names if _plain(name) in _SENTENCES and _are_numbers(table[name])]
    tags = [name for name in texts if name not in (word, *numbers) and _are_tags(table[name])]
    is_numbered = word is not None and _are_words(table[word]) and bool(numbers) and _are_groups(table[numbers[0]])
    if not tags and not is_numbered:
        return table
    if word is None:
        words = [name for name in texts if name not in (*tags, *numbers) and _are_words(table[name])]
        if len(words) != 1:
            return table
        word = words[0]
    if not numbers:
        raise UsageError(
            f"{source}: each row has a word in {word!r} and its tag in {tags[-1]!r}, and nothing says where a sentence "
            "ends; add a column sentence_id, or save it as .conll with a blank line between sentences"
        )
    keys = [*numbers, *(name for name in table.column_names if _plain(name) in _DOCUMENTS)]
    starts = _starts([table[name].to_pylist() for name in keys])
    _check_order(source, numbers[0], table, starts)
    offsets = pa.array([*starts, table.num_rows], pa.int32())
    columns = {
        name: table[name].take(pa.array(starts))
        if name in keys
        else pa.ListArray.from_arrays(offsets, _without_blanks(table[name]) if name == word else _chunk(table[name]))
        for name in table.column_names
    }
    rows, sentences = counted(table.num_rows, "row"), counted(len(starts), "sentence")
    become = agreeing(table.num_rows, "becomes", "become")
    reading.say(f"{source}: {rows} of a word each {become} {sentences}, by {numbers[0]!r}")
    return pa.table(columns)


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name.lower())


def _are_numbers(column: pa.ChunkedArray) -> bool:
    if pa.types.is_integer(column.type):
        return True
    texts = {value for value in column.unique().to_pylist() if value} if pa.types.is_string(column.type) else set()
    return bool(texts) and all(map(_NUMBER.fullmatch, texts))


def _are_tags(column: pa.ChunkedArray) -> bool:
    """True if a column holds tags of a chunking scheme, and not just letters that could be anything."""
    texts: set[str] = set()
    for values in _distinct(column):
        if not are_chunk_tags(values):
            return False
        texts |= values
    return any("-" in text for text in texts) or {"B", "O"} <= texts


def _are_groups(column: pa.ChunkedArray) -> bool:
    """True if numbers stand for several rows each."""
    return len(column) >= _FEWEST_WORDS * len(column.unique())


def _are_words(column: pa.ChunkedArray) -> bool:
    return not any(" " in value for values in _distinct(column) for value in values)


def _distinct(column: pa.ChunkedArray) -> Iterator[set[str]]:
    """The different texts among some rows at a time, blank ones left out."""
    for start in range(0, len(column), _AT_A_TIME):
        yield {value for value in column.slice(start, _AT_A_TIME).unique().to_pylist() if value}


def _starts(keys: Sequence[Sequence[Any]]) -> list[int]:
    """The rows at which a sentence begins: a number differs from the one before, and is not a blank."""
    starts = []
    current: list[Any] = [None] * len(keys)
    for row, values in enumerate(zip(*keys, strict=True)):
        filled = [old if new in (None, "") else new for old, new in zip(current, values, strict=True)]
        if row == 0 or filled != current:
            starts.append(row)
        current = filled
    return starts


def _check_order(source: str, name: str, table: pa.Table, starts: Sequence[int]) -> None:
    """Make sure that the words of a sentence stand together.

    Raises:
        UsageError: they do not.
    """
    numbers = table[name].take(pa.array(starts)).to_pylist()
    if table.num_rows < _FEWEST_WORDS * len(starts) and len(set(numbers)) < len(numbers):
        raise UsageError(f"{source}: the words of a sentence stand apart; sort the rows by {name!r}")


def _chunk(column: pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays(column.chunks)


def _without_blanks(column: pa.ChunkedArray) -> pa.Array:
    """The words, with None for empty ones, which are missing."""
    return pa.array([word or None for word in column.to_pylist()], pa.string())
