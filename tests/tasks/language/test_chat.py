"""Tokens of a chat that count, against texts put together by hand, for all kinds of templates."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tiny_text import BREAKS, MARKED_TEMPLATE, PLAIN_TEMPLATE, SPECIALS, THINKING_TEMPLATE, ids, table, tokenizer

from capaft.support.errors import UsageError
from capaft.tasks.base.columns import Columns
from capaft.tasks.language.chat import chat_examples, chat_rows_examples, pair_example
from capaft.tasks.language.chat_columns import Chat, chat_columns, is_chat, recognise_exchange
from capaft.tasks.language.chat_template import turn_ends
from capaft.tasks.language.example import Example
from capaft.tasks.language.text_pairs import Pair
from capaft.tasks.language.token_loss import IGNORED

TURN, STOP = [SPECIALS["<turn>"]], [SPECIALS["<stop>"]]
CHAT = [("system", "be brief"), ("user", "hi"), ("assistant", "yo"), ("user", "why"), ("assistant", "so")]


def messages(chat: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in chat]


def examples(chats: list[Any], template: str = PLAIN_TEMPLATE) -> list[Example]:
    return chat_rows_examples(tokenizer(template), table(messages=chats), Columns("messages"))[0]


def by_hand(turns: list[tuple[str, str]]) -> tuple[list[int], list[int]]:
    """Tokens and labels up to the end of the last answer: content and end of every assistant turn count."""
    tokens: list[int] = []
    labels: list[int] = []
    for role, content in turns:
        header, message = TURN + ids(f"{role}\n"), ids(content) + STOP
        tokens += header + message + ids("\n")
        counts = role == "assistant"
        labels += [IGNORED] * len(header) + (message if counts else [IGNORED] * len(message)) + [IGNORED]
    return tokens[:-1], labels[:-1]


def test_a_template_that_asks_for_the_date_has_the_same_on_every_day() -> None:
    dated = "{{ '<turn>' }}{{ strftime_now('%d %b %Y') }}" + PLAIN_TEMPLATE
    (example,) = examples([messages(CHAT)], dated)
    assert example.ids == TURN + ids("26 Jul 2024") + by_hand(CHAT)[0]


@pytest.mark.parametrize("template", [PLAIN_TEMPLATE, MARKED_TEMPLATE])
def test_every_answer_counts_and_nothing_else(template: str) -> None:
    (example,) = examples([messages(CHAT)], template)
    tokens, labels = by_hand(CHAT)
    # Markers leave the line break after the last turn in the text; it does not count.
    assert example.ids[: len(tokens)] == tokens
    assert example.labels[: len(tokens)] == labels
    assert set(example.labels[len(tokens) :]) <= {IGNORED}
    assert example.prompt == by_hand(CHAT[:-1])[0] + ids("\n") + TURN + ids("assistant\n")
    assert example.references == ("so",)


@pytest.mark.parametrize("template", [PLAIN_TEMPLATE, MARKED_TEMPLATE, THINKING_TEMPLATE])
@pytest.mark.parametrize("prompt_length", [2, 4])
def test_of_a_prompt_and_its_completion_the_answers_of_the_completion_count(template: str, prompt_length: int) -> None:
    rows = table(prompt=[messages(CHAT[:prompt_length])], completion=[messages(CHAT[prompt_length:])])
    columns = Columns("prompt", None, "completion")
    assert recognise_exchange(rows, {}) == columns
    completed = chat_rows_examples(tokenizer(template), rows, columns)[0]
    whole = examples([messages(CHAT)], template)
    if prompt_length == 2:
        assert completed == whole
    elif template is THINKING_TEMPLATE:
        assert completed == whole[1:]
    else:
        tokens, labels = by_hand(CHAT)
        answer = len(ids("so") + STOP)
        assert [example.ids for example in completed] == [tokens]
        assert completed[0].labels == [IGNORED] * (len(tokens) - answer) + labels[-answer:]
        assert (completed[0].prompt, completed[0].references) == (whole[0].prompt, whole[0].references)


@pytest.mark.parametrize("completion", [[], None, [("user", "why")]])
def test_completions_without_an_answer(completion: Any) -> None:
    second = completion and messages(completion)
    rows = table(prompt=[messages(CHAT[:2]), messages(CHAT[:3])], completion=[messages(CHAT[2:]), second])
    with pytest.raises(
        UsageError, match="row 2: the assistant says nothing in column 'completion'; correct it or drop the row"
    ):
        chat_rows_examples(tokenizer(PLAIN_TEMPLATE), rows, Columns("prompt", None, "completion"))


def test_which_columns_are_an_exchange() -> None:
    chats = [messages(CHAT)]
    rows = table(prompt=chats, completion=chats, one=chats, other=chats, text=["a"])
    assert recognise_exchange(rows, {"text": "one", "label": "other"}) == Columns("one", None, "other")
    assert recognise_exchange(rows, {"text": "one"}) == Columns("one", None, "completion")
    assert recognise_exchange(rows, {"text": "text", "label": "other"}) is None
    assert recognise_exchange(rows, {"label": "text"}) is None
    assert recognise_exchange(table(prompt=chats, text=["a"]), {}) is None


def test_sharegpt() -> None:
    chat = [{"from": "Human", "value": "hi"}, {"from": "gpt", "value": "yo"}, {"from": "human", "value": "bye"}]
    (example,) = examples([chat])
    # Messages after the last answer are dropped.
    assert (example.ids, example.labels) == by_hand([("user", "hi"), ("assistant", "yo")])


def test_templates_that_change_earlier_turns_give_an_example_for_each_answer() -> None:
    first, second = examples([messages(CHAT)], THINKING_TEMPLATE)
    thoughts = ids("<think></think>")
    for example, turns in ((first, CHAT[:3]), (second, CHAT)):
        tokens, _ = by_hand(turns)
        answer = len(ids(turns[-1][1]) + STOP)
        assert example.ids == tokens[:-answer] + thoughts + tokens[-answer:]
        counted = len(thoughts) + answer
        assert example.labels == [IGNORED] * (len(example.ids) - counted) + example.ids[-counted:]


def test_white_space_that_melts_into_the_prompt() -> None:
    (example,) = examples([messages([("user", "hi"), ("assistant", "\nyo")])])
    assert tokenizer()("assistant\n\n")["input_ids"][-1] == BREAKS
    assert example.ids == example.prompt + ids("\nyo") + STOP


@pytest.mark.parametrize(
    ("chat", "error"),
    [
        (messages([("user", "hi")]), "row 1: the assistant answers no message"),
        (messages([("assistant", "hi")]), "row 1: the assistant answers no message"),
        (messages([("user", "hi"), ("assistant", None)]), "row 1: message 2 has no speaker or no text"),
        ([], "row 1: the assistant answers no message"),
    ],
)
def test_chats_without_an_answer(chat: list[dict[str, Any]], error: str) -> None:
    with pytest.raises(UsageError, match=error):
        examples([chat, messages(CHAT)])


def test_the_template_refuses() -> None:
    with pytest.raises(UsageError, match="row 1: the model's chat template rejects this chat: not you"):
        chat_examples(tokenizer("{{ raise_exception('not you') }}"), Chat("row 1", messages(CHAT), (2, 4)), set())
    with pytest.raises(UsageError, match=r"row 1: .*does not put an answer after the prompt"):
        chat_examples(tokenizer("{{ messages | length }}"), Chat("row 1", messages(CHAT), (2, 4)), set())
    with pytest.raises(UsageError, match="no chat template"):
        chat_rows_examples(tokenizer(), table(messages=[messages(CHAT)]), Columns("messages"))


def test_what_ends_an_answer() -> None:
    assert turn_ends(tokenizer()) == {SPECIALS["<end>"]}
    assert turn_ends(tokenizer(PLAIN_TEMPLATE)) == {SPECIALS["<end>"], SPECIALS["<stop>"]}


def test_a_pair_as_a_chat() -> None:
    chat_tokenizer = tokenizer(PLAIN_TEMPLATE)
    stops = turn_ends(chat_tokenizer)
    answered = pair_example(chat_tokenizer, Pair(1, "hi", ("yo", "hey")), stops)
    assert (answered.ids, answered.labels) == by_hand([("user", "hi"), ("assistant", "yo")])
    assert (answered.source, answered.references) == ("hi", ("yo", "hey"))
    unanswered = pair_example(chat_tokenizer, Pair(1, "hi", ()), stops)
    assert unanswered.ids == unanswered.prompt == answered.prompt
    assert set(unanswered.labels) == {IGNORED}


def test_what_is_a_chat() -> None:
    rows = table(a=[messages(CHAT)], b=[[{"from": "x", "value": "y"}]], c=["text"], d=[["texts"]], e=[[{"role": "x"}]])
    rows = rows.add_column("f", [json.dumps(messages(CHAT))]).add_column("g", ["[1]"])
    assert chat_columns(rows) == ["a", "b", "f"]
    assert not is_chat(rows, "missing")
