"""Prompts and completions that are already in the model's format: nothing is put around them a second time."""

from __future__ import annotations

from typing import Any

import pytest
from chat_templates import CHATML, DEFAULT_SYSTEM, GEMMA, MISTRAL
from tiny_text import PLAIN_TEMPLATE, SPECIALS, START, STOP, ids, tokenizer

from capaft.support.errors import UsageError
from capaft.tasks.language.example import Example
from capaft.tasks.language.formatted import SEPARATOR, pair_examples
from capaft.tasks.language.text_pairs import Pair
from capaft.tasks.language.token_loss import IGNORED, mark_tokens

ASKED, ANSWERED = "<turn>user\nhi<stop>\n<turn>assistant\n", "yo<stop>"
LINE = "1 of 1 prompts are already formatted, as {!r} shows, and stay as they are"


def read(
    template: str | None,
    source: str,
    *references: str,
    chat_template: bool = True,
    framed: bool = False,
    **options: Any,
) -> tuple[str, list[str], Example]:
    """The only example's text with ⟦brackets⟧ around what counts, the lines about it, and the example."""
    model = tokenizer(template, framed=framed)
    model.bos_token = START
    pairs = [Pair(1, source, references)]
    separator = options.pop("separator", SEPARATOR)
    (example,), notes = pair_examples(model, pairs, separator, chat_template=chat_template)
    return mark_tokens(model, example.ids, (label != IGNORED for label in example.labels)), notes, example


@pytest.mark.parametrize("template", [CHATML, DEFAULT_SYSTEM, GEMMA, None])
@pytest.mark.parametrize("answer", ["yo<stop>", "yo<stop>\n"])
def test_turns_stay_as_they_are(template: str | None, answer: str) -> None:
    text, notes, example = read(template, ASKED, answer)
    # A model without a template does not know that <stop> ends a turn.
    ended = "yo<stop>" if template else f"{answer}<end>"
    assert text == f"{ASKED}⟦{ended}⟧"
    assert notes == [LINE.format("<turn>")]
    assert example.prompt == [
        SPECIALS["<turn>"],
        *ids("user\nhi"),
        SPECIALS["<stop>"],
        *ids("\n"),
        4,
        *ids("assistant\n"),
    ]
    assert example.references == (("yo",) if template else (answer,))


def test_the_same_tokens_as_in_the_template() -> None:
    assert read(CHATML, ASKED, ANSWERED)[2].ids == read(CHATML, "hi", "yo")[2].ids
    assert read(CHATML, ASKED)[2].prompt == read(CHATML, "hi")[2].prompt
    text, notes, example = read(CHATML, "<start>hi", ANSWERED)
    assert text == read(CHATML, "hi", "yo")[0]
    assert example.references == ("yo",)
    assert notes == ["1 of 1 rows already hold special tokens (<start>, <end>, <stop>), which are not doubled"]


def test_a_format_of_words() -> None:
    expected = "<start>[INST] hi [/INST]⟦ yo<end>⟧"
    assert read(MISTRAL, "hi", "yo")[0] == expected
    for source in ("<start>[INST] hi [/INST]", "[INST] hi [/INST]"):
        text, notes, _ = read(MISTRAL, source, " yo<end>", framed=True)
        assert (text, notes) == (expected, [LINE.format("[INST]")])


def test_prompts_without_a_template() -> None:
    expected = "<start>hi\n⟦yo<end>⟧"
    assert read(None, "hi", "yo", framed=True)[:2] == (expected, [])
    text, notes, example = read(None, "<start>hi", "yo<end>", framed=True)
    assert (text, example.references) == (expected, ("yo",))
    assert notes == ["1 of 1 rows already hold special tokens (<start>, <end>), which are not doubled"]
    assert read(CHATML, "<start>hi", "yo<stop>", framed=True, chat_template=False)[0] == "<start>hi\n⟦yo<stop>⟧"


def test_a_separator_of_the_users_own_stays() -> None:
    assert read(None, "<turn>hi", "yo", separator="<stop>")[0] == "<turn>hi<stop>⟦yo<end>⟧"


def test_a_completion_of_nothing_else() -> None:
    with pytest.raises(UsageError, match="row 1: the completion has nothing but special tokens; drop the row"):
        read(CHATML, "hi", "<stop>")


def test_a_template_that_is_not_used_may_be_odd() -> None:
    odd = "{{ raise_exception('not you') }}"
    assert read(odd, "hi", "yo", chat_template=False)[0] == "hi\n⟦yo<end>⟧"
    with pytest.raises(UsageError, match="rejects this chat: not you"):
        read(odd, "hi", "yo")


def test_the_answer_to_a_formatted_prompt_ends_as_the_template_ends_turns() -> None:
    pair = Pair(1, "<turn>user\nq<stop>\n<turn>assistant\n", ("a",))
    (example,), _ = pair_examples(tokenizer(PLAIN_TEMPLATE), [pair], SEPARATOR, chat_template=True)
    assert example.labels[-2:] == [*ids("a"), SPECIALS[STOP]]
