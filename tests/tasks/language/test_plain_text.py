"""Finding the column of text, and the law of packing: the blocks are the stream."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_text import SPECIALS, table, tokenizer

from capaft.support.errors import UsageError
from capaft.tasks.base.columns import Columns
from capaft.tasks.language.plain_text import (
    end_of_text_token,
    pack_blocks,
    recognise_plain_text,
    special_tokens,
    surrounding_tokens,
)


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 99), min_size=1), min_size=1), st.integers(1, 12))
def test_blocks_are_the_stream_cut(sequences: list[list[int]], length: int) -> None:
    blocks = list(pack_blocks(sequences, length))
    joined = []
    for sequence in sequences:
        joined += sequence
    assert [token for block in blocks for token in block] == joined
    assert {len(block) for block in blocks[:-1]} <= {length}
    assert 1 <= len(blocks[-1]) <= length


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"text": ["a"], "title": ["b"]}, "text"),
        ({"id": ["a"], "Content": ["b"]}, "Content"),
        ({"anything": ["a"], "label": [1]}, "anything"),
        ({"id": ["a"], "anything": ["b"]}, "anything"),
    ],
)
def test_recognise(columns: dict[str, list], expected: str) -> None:
    assert recognise_plain_text(table(**columns), {}) == Columns(expected)


def test_recognise_asks() -> None:
    with pytest.raises(UsageError, match=r"several columns could be.*--text-column"):
        recognise_plain_text(table(one=["a"], two=["b"]), {})
    with pytest.raises(UsageError, match="no column of text"):
        recognise_plain_text(table(one=[1]), {})
    assert recognise_plain_text(table(one=["a"], two=["b"]), {"text": "two"}) == Columns("two")


def test_special_tokens_around_a_text() -> None:
    assert surrounding_tokens(tokenizer()) == ([], [])
    assert surrounding_tokens(tokenizer(framed=True)) == ([SPECIALS["<start>"]], [SPECIALS["<end>"]])


def test_end_of_text() -> None:
    ending = tokenizer()
    assert end_of_text_token(ending) == SPECIALS["<end>"]
    ending.eos_token, ending.sep_token = None, "<stop>"
    assert end_of_text_token(ending) == SPECIALS["<stop>"]
    ending.sep_token = None
    with pytest.raises(UsageError, match="neither"):
        end_of_text_token(ending)


def test_tokens_that_stand_for_no_text() -> None:
    assert special_tokens(tokenizer()) == set(SPECIALS.values())
