"""Which tokens of a chat count, against texts put together by hand, whatever the template lets one see."""

from __future__ import annotations

from typing import Any

import pytest
from tiny_text import BREAKS, MARKED_TEMPLATE, PLAIN_TEMPLATE, SPECIALS, THINKING_TEMPLATE, ids, table, tokenizer

from capaft.support.errors import UsageError
from capaft.tasks.base.columns import Columns
from capaft.tasks.language.chat import chat_examples, conversations, exchange, is_chat, recognise_exchange, turn_ends
from capaft.tasks.language.example import Example
from capaft.tasks.language.text_pairs import Pair
from capaft.tasks.language.token_loss import IGNORED

TURN, STOP = [SPECIALS["<turn>"]], [SPECIALS["<stop>"]]
CHAT = [("system", "be brief"), ("user", "hi"), ("assistant", "yo"), ("user", "why"), ("assistant", "so")]


def messages(chat: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in chat]


def examples(chats: list[Any], template: str = PLAIN_TEMPLATE) -> list[Example]:
    return conversations(tokenizer(template), table(messages=chats), Columns("messages"))


def by_hand(turns: list[tuple[str, str]]) -> tuple[list[int], list[int]]:
    """Tokens and labels up to the end of the last answer: content and end of every assistant's turn count."""
    tokens: list[int] = []
    labels: list[int] = []
    for role, content in turns:
        header, said = TURN + ids(f"{role}\n"), ids(content) + STOP
        tokens += header + said + ids("\n")
        does = role == "assistant"
        labels += [IGNORED] * len(header) + (said if does else [IGNORED] * len(said)) + [IGNORED]
    return tokens[:-1], labels[:-1]


def test_a_template_that_asks_for_the_date_has_the_same_on_every_day() -> None:
    dated = "{{ '<turn>' }}{{ strftime_now('%d %b %Y') }}" + PLAIN_TEMPLATE
    (found,) = examples([messages(CHAT)], dated)
    assert found.ids == TURN + ids("26 Jul 2024") + by_hand(CHAT)[0]


@pytest.mark.parametrize("template", [PLAIN_TEMPLATE, MARKED_TEMPLATE])
def test_every_answer_counts_and_nothing_else(template: str) -> None:
    (found,) = examples([messages(CHAT)], template)
    tokens, labels = by_hand(CHAT)
    # Markers leave the line break after the last turn in the text; it does not count.
    assert found.ids[: len(tokens)] == tokens
    assert found.labels[: len(tokens)] == labels
    assert set(found.labels[len(tokens) :]) <= {IGNORED}
    assert found.prompt == by_hand(CHAT[:-1])[0] + ids("\n") + TURN + ids("assistant\n")
    assert found.references == ("so",)


@pytest.mark.parametrize("template", [PLAIN_TEMPLATE, MARKED_TEMPLATE, THINKING_TEMPLATE])
@pytest.mark.parametrize("asked", [2, 4])
def test_of_a_prompt_and_its_completion_the_answers_of_the_completion_count(template: str, asked: int) -> None:
    rows = table(prompt=[messages(CHAT[:asked])], completion=[messages(CHAT[asked:])])
    columns = Columns("prompt", None, "completion")
    assert recognise_exchange(rows, {}) == columns
    found = conversations(tokenizer(template), rows, columns)
    whole = examples([messages(CHAT)], template)
    if asked == 2:
        assert found == whole
    elif template is THINKING_TEMPLATE:
        assert found == whole[1:]
    else:
        tokens, labels = by_hand(CHAT)
        answer = len(ids("so") + STOP)
        assert [each.ids for each in found] == [tokens]
        assert found[0].labels == [IGNORED] * (len(tokens) - answer) + labels[-answer:]
        assert (found[0].prompt, found[0].references) == (whole[0].prompt, whole[0].references)


@pytest.mark.parametrize("completion", [[], None, [("user", "why")]])
def test_completions_without_an_answer(completion: Any) -> None:
    said = completion and messages(completion)
    rows = table(prompt=[messages(CHAT[:2]), messages(CHAT[:3])], completion=[messages(CHAT[2:]), said])
    with pytest.raises(UsageError, match="row 2: the assistant says nothing in column 'completion'; drop the row"):
        conversations(tokenizer(PLAIN_TEMPLATE), rows, Columns("prompt", None, "completion"))


def test_which_columns_are_an_exchange() -> None:
    said = [messages(CHAT)]
    rows = table(prompt=said, completion=said, one=said, other=said, text=["a"])
    assert recognise_exchange(rows, {"text": "one", "label": "other"}) == Columns("one", None, "other")
    assert recognise_exchange(rows, {"text": "one"}) == Columns("one", None, "completion")
    assert recognise_exchange(rows, {"text": "text", "label": "other"}) is None
    assert recognise_exchange(rows, {"label": "text"}) is None
    assert recognise_exchange(table(prompt=said, text=["a"]), {}) is None


def test_sharegpt() -> None:
    said = [{"from": "Human", "value": "hi"}, {"from": "gpt", "value": "yo"}, {"from": "human", "value": "bye"}]
    (found,) = examples([said])
    # What comes after the last answer teaches nothing.
    assert (found.ids, found.labels) == by_hand([("user", "hi"), ("assistant", "yo")])


def test_templates_that_change_earlier_turns_give_an_example_for_each_answer() -> None:
    first, second = examples([messages(CHAT)], THINKING_TEMPLATE)
    thoughts = ids("<think></think>")
    for found, turns in ((first, CHAT[:3]), (second, CHAT)):
        tokens, _ = by_hand(turns)
        answer = len(ids(turns[-1][1]) + STOP)
        assert found.ids == tokens[:-answer] + thoughts + tokens[-answer:]
        counted = len(thoughts) + answer
        assert found.labels == [IGNORED] * (len(found.ids) - counted) + found.ids[-counted:]


def test_white_space_that_melts_into_the_prompt() -> None:
    (found,) = examples([messages([("user", "hi"), ("assistant", "\nyo")])])
    assert tokenizer()("assistant\n\n")["input_ids"][-1] == BREAKS
    assert found.ids == found.prompt + ids("\nyo") + STOP


@pytest.mark.parametrize(
    ("said", "says"),
    [
        (messages([("user", "hi")]), "row 1: the assistant answers to nothing"),
        (messages([("assistant", "hi")]), "row 1: the assistant answers to nothing"),
        (messages([("user", "hi"), ("assistant", None)]), "row 1: message 2 has no speaker or no text"),
        ([], "row 1: the assistant answers to nothing"),
    ],
)
def test_chats_without_an_answer(said: list[dict[str, Any]], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        examples([said, messages(CHAT)])


def test_the_template_refuses() -> None:
    with pytest.raises(UsageError, match="row 1: the model's chat template does not take this chat: not you"):
        chat_examples(tokenizer("{{ raise_exception('not you') }}"), messages(CHAT), set(), "row 1")
    with pytest.raises(UsageError, match=r"row 1: .*does not put an answer after the prompt"):
        chat_examples(tokenizer("{{ messages | length }}"), messages(CHAT), set(), "row 1")
    with pytest.raises(UsageError, match="no chat template"):
        conversations(tokenizer(), table(messages=[messages(CHAT)]), Columns("messages"))


def test_what_ends_an_answer() -> None:
    assert turn_ends(tokenizer()) == {SPECIALS["<end>"]}
    assert turn_ends(tokenizer(PLAIN_TEMPLATE)) == {SPECIALS["<end>"], SPECIALS["<stop>"]}


def test_a_pair_as_a_chat() -> None:
    made = tokenizer(PLAIN_TEMPLATE)
    found = exchange(made, Pair(1, "hi", ("yo", "hey")), turn_ends(made))
    assert (found.ids, found.labels) == by_hand([("user", "hi"), ("assistant", "yo")])
    assert (found.source, found.references) == ("hi", ("yo", "hey"))
    asked = exchange(made, Pair(1, "hi", ()), turn_ends(made))
    assert asked.ids == asked.prompt == found.prompt
    assert set(asked.labels) == {IGNORED}


def test_what_is_a_chat() -> None:
    features = table(
        a=[messages(CHAT)], b=[[{"from": "x", "value": "y"}]], c=["text"], d=[["texts"]], e=[[{"role": "x"}]]
    ).features
    assert {name for name, feature in features.items() if is_chat(feature)} == {"a", "b"}
    assert not is_chat(None)
