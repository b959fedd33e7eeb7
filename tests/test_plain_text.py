"""Finding the column of text, and the law of packing: the blocks are the stream."""

from __future__ import annotations

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_text import SPECIALS, ids, table, tokenizer

from capaft.columns import Columns
from capaft.support.errors import UsageError
from capaft.tasks import plain_text


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 99), min_size=1), min_size=1), st.integers(1, 12))
def test_blocks_are_the_stream_cut(sequences: list[list[int]], length: int) -> None:
    found = plain_text.blocks(sequences, length)
    joined = []
    for sequence in sequences:
        joined += sequence
    assert [token for block in found for token in block] == joined
    assert {len(block) for block in found[:-1]} <= {length}
    assert 1 <= len(found[-1]) <= length


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
    assert plain_text.recognise(table(**columns), {}) == Columns(expected)


def test_recognise_asks() -> None:
    with pytest.raises(UsageError, match=r"several columns could be.*--text-column"):
        plain_text.recognise(table(one=["a"], two=["b"]), {})
    with pytest.raises(UsageError, match="no column of text"):
        plain_text.recognise(table(one=[1]), {})
    assert plain_text.recognise(table(one=["a"], two=["b"]), {"text": "two"}) == Columns("two")


def test_tokenised_leaves_out_empty_texts() -> None:
    found = plain_text.tokenised(tokenizer(framed=True), table(text=["ab", "", "c"]), Columns("text"))
    assert found == [ids("ab"), ids("c")]
    with pytest.raises(UsageError, match="every text"):
        plain_text.tokenised(tokenizer(), table(text=[""]), Columns("text"))
    with pytest.raises(UsageError, match="row 2"):
        plain_text.tokenised(tokenizer(), Dataset.from_dict({"text": ["a", None]}), Columns("text"))


def test_special_tokens_around_a_text() -> None:
    assert plain_text.frame(tokenizer()) == ([], [])
    assert plain_text.frame(tokenizer(framed=True)) == ([SPECIALS["<start>"]], [SPECIALS["<end>"]])


def test_end_of_text() -> None:
    made = tokenizer()
    assert plain_text.end_of_text(made) == SPECIALS["<end>"]
    made.eos_token, made.sep_token = None, "<stop>"
    assert plain_text.end_of_text(made) == SPECIALS["<stop>"]
    made.sep_token = None
    with pytest.raises(UsageError, match="neither"):
        plain_text.end_of_text(made)


def test_tokens_that_stand_for_no_text() -> None:
    assert plain_text.specials(tokenizer()) == set(SPECIALS.values())
