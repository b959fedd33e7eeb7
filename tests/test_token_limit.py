"""The least of what was asked for, what the tokenizer allows and the positions there are."""

from __future__ import annotations

import sys

from tiny_text import base, tokenizer

from capaft.tasks.token_limit import positions, token_limit


def test_the_least_of_three() -> None:
    made = tokenizer()
    gpt2, t5 = base("gpt2", made), base("t5", made)
    assert (positions(gpt2), positions(t5)) == (64, sys.maxsize)
    assert [token_limit(gpt2, length) for length in (10, 64, 100)] == [10, 64, 64]
    assert token_limit(t5, 100) == 100
    made.model_max_length = 20
    assert token_limit(gpt2, 100) == token_limit(t5, 100) == 20
