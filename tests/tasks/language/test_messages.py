"""Messages in standard form, from every form that data sets have them in, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from capaft.tasks.language.messages import is_learnt, standard_message, standard_tools, without_nulls

CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"role": " User ", "content": "hi"}, {"role": "user", "content": "hi"}),
        ({"from": "Human", "value": "hi"}, {"role": "user", "content": "hi"}),
        ({"from": "gpt", "value": "yo", "weight": 0}, {"role": "assistant", "content": "yo", "weight": 0}),
        ({"from": "observation", "value": "12 C"}, {"role": "tool", "content": "12 C"}),
        ({"role": "function", "name": "add", "content": "2"}, {"role": "tool", "content": "2", "name": "add"}),
        ({"role": "tool", "content": {"sum": "zwölf"}}, {"role": "tool", "content": '{"sum": "zwölf"}'}),
        ({"role": "tool", "content": 12}, {"role": "tool", "content": "12"}),
        ({"role": "user", "content": [{"type": "text", "text": "a"}, "b"]}, {"role": "user", "content": "ab"}),
        # One type for all messages gives each the fields of every other.
        ({"role": "user", "content": "a", "tool_calls": None, "name": None, "x": []}, {"role": "user", "content": "a"}),
        ({"role": None, "content": None, "from": "gpt", "value": "yo"}, {"role": "assistant", "content": "yo"}),
        (
            {"role": "assistant", "content": "yo", "reasoning_content": "hm"},
            {"role": "assistant", "content": "yo", "reasoning_content": "hm"},
        ),
        ({"role": "assistant", "content": None, "tool_calls": [CALL]}, CALLING),
        ({"role": "assistant", "tool_calls": json.dumps([CALL])}, CALLING),
        ({"role": "assistant", "content": None, "function_call": {"name": "add", "arguments": '{"a": 1}'}}, CALLING),
        ({"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'}, CALLING),
        ({"from": "function_call", "value": '{"name": "add", "parameters": {"a": 1}}'}, CALLING),
    ],
)
def test_standard_form(message: dict[str, Any], expected: dict[str, Any]) -> None:
    assert standard_message(message) == expected


def test_a_call_keeps_its_number_and_its_null_arguments() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": null}'}}
    (standard,) = standard_message({"role": "assistant", "content": None, "tool_calls": [call]})["tool_calls"]
    assert standard == {**call, "function": {"name": "add", "arguments": {"a": None}}}
    bare = {"role": "assistant", "content": None, "tool_calls": [{"name": "now", "arguments": ""}]}
    assert standard_message(bare)["tool_calls"] == [{"type": "function", "function": {"name": "now", "arguments": {}}}]


@pytest.mark.parametrize(
    ("message", "fault"),
    [
        ("hi", "is not a record"),
        ({"content": "hi"}, "has no speaker or no text"),
        ({"role": " ", "content": "hi"}, "has no speaker or no text"),
        ({"role": "user", "content": None}, "has no speaker or no text"),
        ({"role": "assistant", "content": None}, "has no speaker or no text"),
        ({"from": "hummany", "value": "hi"}, "has the unknown role 'hummany'"),
        ({"role": "user", "content": True}, "has a content that is not text"),
        ({"role": "user", "content": {"a": 1}}, "has a content that is not text"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, "has a part of type 'image_url'"),
        ({"from": "function_call", "value": "add 1"}, "has 'add 1' where JSON is expected"),
        (
            {"from": "function_call", "value": '{"name": "add", "arguments": {"a": "\\ud83d"}}'},
            "has half of a character",
        ),
        ({"from": "function_call", "value": "{}"}, "has a tool call without a name"),
        ({"role": "assistant", "tool_calls": [{"name": "add", "arguments": "[1]"}]}, "calls add with arguments that"),
    ],
)
def test_faults(message: Any, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        standard_message(message)


def test_only_weights_of_0_and_1() -> None:
    message = {"role": "assistant", "content": "yo"}
    weights = {weight: is_learnt({**message, "weight": weight}) for weight in (0, 1)}
    assert weights == {0: False, 1: True}
    assert is_learnt(message)
    assert not is_learnt({"role": "user", "content": "yo"})
    with pytest.raises(ValueError, match=r"the weight 0\.5"):
        is_learnt({**message, "weight": 0.5})


def test_tools() -> None:
    tool = {"type": "function", "function": {"name": "add", "parameters": {"default": None}}}
    for written in ([tool], json.dumps([tool]), [json.dumps(tool)], [tool["function"]], tool):
        assert standard_tools(written) == [tool]
    assert standard_tools(None) == standard_tools("") == standard_tools([]) == []
    with pytest.raises(ValueError, match="not a list of records"):
        standard_tools("[1]")


def test_nulls() -> None:
    assert without_nulls([{"a": None, "b": {"c": None, "d": [None, 1]}}]) == [{"b": {"d": [None, 1]}}]
