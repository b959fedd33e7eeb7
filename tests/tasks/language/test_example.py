"""Prompts and completions as tokens, against a naive construction byte by byte."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_text import SPECIALS, ids, tokenizer

from capaft.tasks.language.example import plain_examples, shortened_prompt
from capaft.tasks.language.text_pairs import Pair
from capaft.tasks.language.token_loss import IGNORED

TOKENIZER = tokenizer(framed=True)
# Without line breaks, two of which are one token.
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\n<"), max_size=8)


@settings(deadline=None)
@given(TEXTS, TEXTS, TEXTS)
def test_the_completion_and_its_end_count(source: str, separator: str, target: str) -> None:
    (example,) = plain_examples(TOKENIZER, [Pair(1, source, (target, "another"))], separator)
    tokens = [SPECIALS["<start>"], *ids(source + separator), *ids(target), SPECIALS["<end>"]]
    prompt_bytes = len((source + separator).encode())
    labels = [token if position > prompt_bytes else IGNORED for position, token in enumerate(tokens)]
    assert (example.ids, example.labels) == (tokens, labels)
    assert example.prompt == tokens[: 1 + prompt_bytes]
    assert (example.source, example.references) == (source, (target, "another"))


def test_without_a_completion() -> None:
    (example,) = plain_examples(TOKENIZER, [Pair(1, "ab", ())], "")
    assert example.ids == example.prompt == [SPECIALS["<start>"], *ids("ab")]
    assert set(example.labels) == {IGNORED}


def test_an_empty_prompt_begins_with_the_end_token() -> None:
    (example,) = plain_examples(tokenizer(), [Pair(1, "", ("x",))], "")
    assert example.ids == [SPECIALS["<end>"], *ids("x"), SPECIALS["<end>"]]


def test_a_long_prompt_keeps_its_end_and_its_first_special_tokens() -> None:
    start, turn = SPECIALS["<start>"], SPECIALS["<turn>"]
    prompt = [start, turn, *ids("abcd"), turn, *ids("e")]
    assert shortened_prompt(TOKENIZER, prompt, 8) is prompt
    assert shortened_prompt(TOKENIZER, prompt, 7) == [start, turn, *ids("bcd"), turn, *ids("e")]
    assert shortened_prompt(TOKENIZER, prompt, 3) == [start, turn, *ids("e")]
    assert shortened_prompt(TOKENIZER, prompt, 1) == ids("e")
    assert shortened_prompt(TOKENIZER, ids("abcd"), 3) == ids("bcd")


def test_a_prompt_of_special_tokens_alone_keeps_its_end() -> None:
    prompt = list(SPECIALS.values())
    assert shortened_prompt(TOKENIZER, prompt, 4) == [*prompt[:2], *prompt[-2:]]
