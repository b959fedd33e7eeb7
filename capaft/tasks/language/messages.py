"""Messages of chats in the form that chat templates expect, from the forms that data sets have them in.

Besides `role` and `content` a message keeps whatever else it has, such as `tool_calls` or `reasoning_content`: the
template decides what to render. Read are OpenAI's format, old and new, and ShareGPT's with its function calls.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

Message = dict[str, Any]
"""A message in the form that chat templates expect: `{"role": ..., "content": ...}`, and any further fields."""

SPEAKERS, TEXTS = ("role", "from"), ("content", "value")
ASSISTANT, SYSTEM, DEVELOPER, TOOL, USER = "assistant", "system", "developer", "tool", "user"
_ROLES = {
    "human": USER,
    "prompter": USER,
    "gpt": ASSISTANT,
    "chatgpt": ASSISTANT,
    "bot": ASSISTANT,
    "ai": ASSISTANT,
    "model": ASSISTANT,
    "function": TOOL,
    "function_response": TOOL,
    "observation": TOOL,
    "tool_output": TOOL,
    "tool_response": TOOL,
    "tool_result": TOOL,
}
"""Names of the speakers in ShareGPT and similar data sets, and of a function's result in OpenAI's old format."""
_CALLERS = ("function_call", "tool_call")
# The last three are names that templates give: Llama 3.1's for a tool, Granite's for what it reads.
_KNOWN = {ASSISTANT, SYSTEM, DEVELOPER, TOOL, USER, "ipython", "document", "available_tools"}


def standard_message(message: Any) -> Message:
    """A message with the keys and the role of chat templates, and tool calls whose arguments are dictionaries.

    Fields that are null or empty are dropped: one type for all messages gives each the fields of every other.

    Raises:
        ValueError: it lacks its speaker or its text, its role is unknown, or a part of it cannot be read.
    """
    if not isinstance(message, dict):
        raise ValueError("is not a record with a role and a content")
    speaker = next((message[key] for key in SPEAKERS if message.get(key) is not None), None)
    content = next((message[key] for key in TEXTS if message.get(key) is not None), None)
    if not isinstance(speaker, str) or not speaker.strip():
        raise ValueError("has no speaker or no text")
    name = speaker.strip().lower()
    role = ASSISTANT if name in _CALLERS else _ROLES.get(name, name)
    if role not in _KNOWN:
        raise ValueError(f"has the unknown role {speaker!r}")
    fields = {key: value for key, value in message.items() if key not in (*SPEAKERS, *TEXTS) and _is_given(value)}
    calls = fields.pop("tool_calls", None) or fields.pop("function_call", None)
    if name in _CALLERS and calls is None:
        calls, content = content, None
    standard = {"role": role, "content": "" if content is None else _text(content, role), **fields}
    if calls is not None:
        standard["tool_calls"] = standard_calls(calls)
    elif content is None:
        raise ValueError("has no speaker or no text")
    return standard


def standard_calls(calls: Any) -> list[dict[str, Any]]:
    """Tool calls as `{"type": "function", "function": {"name": ..., "arguments": {...}}}`, from JSON text or records.

    Raises:
        ValueError: they are not such records.
    """
    calls = parsed(calls)
    return [_standard_call(call) for call in (calls if isinstance(calls, list) else [calls])]


def standard_tools(tools: Any) -> list[dict[str, Any]]:
    """The tools of a chat as `{"type": "function", "function": {...}}`, from JSON text or records; may be empty.

    Raises:
        ValueError: they are not such records.
    """
    tools = parsed(tools) if _is_given(tools) else []
    standard = []
    for tool in tools if isinstance(tools, list) else [tools]:
        record = parsed(tool)
        if not isinstance(record, dict):
            raise ValueError("the tools are not a list of records")
        is_bare = "name" in record and "function" not in record and record.get("type", "function") == "function"
        bare = {key: value for key, value in record.items() if key != "type"}
        standard.append({"type": "function", "function": bare} if is_bare else record)
    return standard


def parsed(value: Any) -> Any:
    """A value, or what it says if it is JSON text.

    Raises:
        ValueError: it is text, and not JSON.
    """
    if not isinstance(value, str):
        return value
    try:
        said = json.loads(value)
        # JSON may name halves of characters, which are no text.
        json.dumps(said, ensure_ascii=False).encode()
        return said
    except UnicodeEncodeError:
        raise ValueError("has half of a character (a lone surrogate)") from None
    except (ValueError, RecursionError):
        shown = value if len(value) <= 40 else value[:37] + "..."
        raise ValueError(f"has {shown!r} where JSON is expected") from None


def without_nulls(value: Any) -> Any:
    """A record, or a list of records, without the fields that Arrow adds to give all of them one type."""
    if isinstance(value, dict):
        return {key: without_nulls(entry) for key, entry in value.items() if entry is not None}
    return [without_nulls(entry) for entry in value] if isinstance(value, list) else value


def is_answer(message: Mapping[str, Any]) -> bool:
    """True if the assistant is the speaker of a message as a data set has it."""
    name = str(next((message[key] for key in SPEAKERS if message.get(key) is not None), "")).strip().lower()
    return name in _CALLERS or _ROLES.get(name, name) == ASSISTANT


def is_learnt(message: Message) -> bool:
    """True for the assistant's messages, unless OpenAI's `weight` is 0.

    Raises:
        ValueError: the weight is neither 0 nor 1.
    """
    weight = message.get("weight", 1)
    if weight not in (0, 1):
        raise ValueError(f"has the weight {weight}, and only 0 and 1 are possible")
    return bool(message["role"] == ASSISTANT and weight)


def _is_given(value: Any) -> bool:
    return value is not None and value not in ("", [], {})


def _standard_call(call: Any) -> dict[str, Any]:
    call = parsed(call)
    function = parsed(call.get("function", call)) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ValueError("has a tool call without a name")
    arguments = function.get("arguments", function.get("parameters"))
    arguments = parsed(arguments) if _is_given(arguments) else {}
    if not isinstance(arguments, dict):
        raise ValueError(f"calls {function['name']} with arguments that are not a record")
    around = {key: value for key, value in call.items() if value is not None} if "function" in call else {}
    standard = {"name": function["name"], "arguments": arguments}
    return {**around, "type": around.get("type", "function"), "function": standard}


def _text(content: Any, role: str) -> str:
    """A message's content as text: that of its parts, joined; a number, or what a tool returned, as JSON.

    Raises:
        ValueError: it has a part that is not text.
    """
    if isinstance(content, str):
        return content
    if isinstance(content, int | float) and not isinstance(content, bool):
        return json.dumps(content)
    if isinstance(content, Sequence) and all(_is_part(part) for part in content):
        return "".join(map(_part_text, content))
    if role == TOOL:
        return json.dumps(content, ensure_ascii=False)
    raise ValueError("has a content that is not text")


def _is_part(part: Any) -> bool:
    return isinstance(part, str) or (isinstance(part, Mapping) and ("type" in part or "text" in part))


def _part_text(part: Any) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part.get("text"), str) and part.get("type") in (None, "text", "input_text", "output_text"):
        return str(part["text"])
    raise ValueError(f"has a part of type {part.get('type')!r}, and only text can be read")
