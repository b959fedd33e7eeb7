"""Columns of chats and what stands beside them, read row by row, and the rows that have a fault."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from tiny_text import table

from capaft.config.train_config import TrainConfig
from capaft.data.tables import read_rows
from capaft.tasks.base.columns import Columns
from capaft.tasks.causal_lm import CausalLM
from capaft.tasks.language.chat_columns import Chat, chat_columns, chat_faults, is_chat, only_chat, sound_chats

CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "default": None}}}


def calling(**arguments: Any) -> list[dict[str, Any]]:
    call = {"type": "function", "function": {"name": "add", "arguments": arguments}}
    return [CHAT[0], {"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": "2"}]


def written(path: Path, rows: list[dict[str, Any]]) -> Dataset:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return read_rows(path)


def chats(rows: Dataset, columns: Columns | None = None) -> list[Chat]:
    return sound_chats(rows, columns or CausalLM.recognise(rows, {}))


def test_a_file_keeps_each_call_as_it_is(tmp_path: Path) -> None:
    # Their arguments differ in name, type and order, and one is null.
    written_chats = [calling(b=1, a=None), calling(a="x"), calling(a={"c": 2**70}, b=[1.1])]
    rows = written(tmp_path / "chats.jsonl", [{"messages": chat} for chat in written_chats])
    assert chat_columns(rows) == ["messages"]
    read = [chat.messages for chat in chats(rows)]
    assert [json.dumps(messages) for messages in read] == [json.dumps(chat[:2]) for chat in written_chats]


def test_chats_as_json_text_in_csv(tmp_path: Path) -> None:
    cell = json.dumps(CHAT).replace('"', '""')
    (tmp_path / "chats.csv").write_text(f'id,messages\n1,"{cell}"\n2,"{cell}"\n')
    rows = read_rows(tmp_path / "chats.csv")
    assert CausalLM.recognise(rows, {}) == Columns("messages")
    assert [chat.messages for chat in chats(rows)] == [CHAT, CHAT]


def test_contents_of_several_types(tmp_path: Path) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}, CHAT[1]]
    rows = written(tmp_path / "chats.jsonl", [{"messages": CHAT}, {"messages": parts}, {"messages": CHAT}])
    assert [chat.messages for chat in chats(rows)] == [CHAT] * 3


def test_what_stands_beside_a_chat() -> None:
    rows = table(
        messages=[CHAT, [{"role": "system", "content": "own"}, *CHAT], CHAT],
        system_prompt=["be brief", "be brief", " "],
        functions=[json.dumps([TOOL["function"]]), None, ""],
        chat_template_kwargs=[{"enable_thinking": False, "extra": None}, None, {"enable_thinking": None}],
        title=["a", "b", "c"],
    )
    first, second, third = chats(rows)
    assert first.messages == [{"role": "system", "content": "be brief"}, *CHAT]
    assert (first.learnt, second.learnt, third.learnt) == ((2,), (2,), (1,))
    assert second.messages[0] == {"role": "system", "content": "own"}
    assert third.messages == CHAT
    assert first.options == {"enable_thinking": False, "tools": [TOOL]}
    assert second.options == third.options == {}


def test_what_the_training_decides_is_no_variable() -> None:
    rows = table(messages=[CHAT], chat_template_kwargs=[{"tokenize": True}])
    assert chat_faults(rows, Columns("messages")) == {
        0: "chat_template_kwargs is not a record of the template's own variables"
    }
    assert chat_faults(table(messages=[CHAT], tools=["add"]), Columns("messages")) == {
        0: "its column of tools has 'add' where JSON is expected"
    }


def test_messages_of_weight_0_are_context() -> None:
    chat = [*CHAT, CHAT[0], {**CHAT[1], "weight": 0}, CHAT[0], CHAT[1], CHAT[0], {**CHAT[1], "weight": 0}]
    (read,) = chats(table(messages=[chat]))
    assert (read.learnt, len(read.messages)) == ((1, 5), 6)


@pytest.mark.parametrize(
    ("chat", "fault"),
    [
        ([], "the assistant answers no message"),
        (CHAT[:1], "the assistant answers no message"),
        (CHAT[1:], "the assistant answers no message"),
        ([{"role": "system", "content": "be brief"}], "the assistant answers no message"),
        ([CHAT[0], {**CHAT[1], "weight": 0}], "the assistant answers no message"),
        ([CHAT[0], {"role": "assistant", "content": " \n"}], "message 2 is an empty answer"),
        ([CHAT[0], {"role": "assistant", "content": None}], "message 2 has no speaker or no text"),
        ([*CHAT, CHAT[0], {"role": "assistant", "content": ""}], "message 4 is an empty answer"),
        ([{"role": "usr", "content": "hi"}, CHAT[1]], "message 1 has the unknown role 'usr'"),
        ([CHAT[0], {**CHAT[1], "weight": 2}], "message 2 has the weight 2"),
    ],
)
def test_a_row_with_a_fault(tmp_path: Path, chat: list[Any], fault: str) -> None:
    rows = written(tmp_path / "chats.jsonl", [{"messages": chat}, {"messages": CHAT}])
    faults = CausalLM.faults(rows, Columns("messages"), TrainConfig())
    assert [*faults] == [0]
    assert faults[0].startswith(fault)


def test_an_opening_word_of_the_assistant_and_a_second_answer() -> None:
    (read,) = chats(table(messages=[[CHAT[1], *CHAT, CHAT[1]]]))
    assert read.learnt == (2, 3)


def test_preferences() -> None:
    other = [CHAT[0], {"role": "assistant", "content": "no"}]
    whole = table(chosen=[CHAT], rejected=[other])
    assert CausalLM.recognise(whole, {}) == Columns("chosen")
    assert only_chat(table(one=[CHAT], other=[CHAT])) is None
    for chosen in (CHAT, CHAT[1:]):
        rows = table(prompt=[CHAT[:1]], chosen=[chosen], rejected=[other])
        assert CausalLM.recognise(rows, {}) == Columns("prompt", None, "chosen")
        assert [(chat.messages, chat.learnt) for chat in chats(rows)] == [(CHAT, (1,))]


def test_texts_are_no_chats() -> None:
    rows = table(a=["[1, 2]"], b=['[{"text": "a"}]'], c=["[sic] he said"], d=["12"], e=['{"role": "a", "content": ""}'])
    assert not any(is_chat(rows, name) for name in rows.column_names)
    assert chat_columns(table(a=["", "[]", "broken [", json.dumps(CHAT)])) == ["a"]
