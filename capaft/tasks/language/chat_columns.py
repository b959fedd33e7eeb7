"""Columns of chats: which they are, what stands beside them (system text, tools, documents), and how a row is read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import datasets

from capaft.support.errors import UsageError
from capaft.tasks.base.columns import Columns, cell_kind, column_values, find_column, is_text, plain_name, row_numbers
from capaft.tasks.language.messages import (
    DEVELOPER,
    SPEAKERS,
    SYSTEM,
    TEXTS,
    USER,
    Message,
    is_answer,
    is_learnt,
    parsed,
    standard_message,
    standard_tools,
    without_nulls,
)

if TYPE_CHECKING:
    from datasets import Dataset

_CHATS = (("messages",), ("conversations", "conversation"), ("chat", "dialog", "dialogue"))
_COMPLETIONS = (("completion",), ("chosen",))
_SYSTEM = ("system", "systemprompt", "systemmessage")
_TOOLS = ("tools", "functions")
_DOCUMENTS, _OPTIONS = ("documents",), ("chattemplatekwargs",)
# Rows that are looked at to tell if a column without a type of its own holds chats.
_SAMPLE = 20
# What `apply_chat_template` takes besides the template's own variables; capaft decides these.
_DECIDED = {
    "add_generation_prompt",
    "chat_template",
    "continue_final_message",
    "conversation",
    "max_length",
    "padding",
    "return_assistant_tokens_mask",
    "return_dict",
    "return_tensors",
    "sanitize_control_tokens",
    "tokenize",
    "tokenizer_kwargs",
    "truncation",
}


@dataclass(frozen=True)
class Chat:
    """A chat up to its last answer that is learnt, or all of it if it waits for an answer.

    Attributes:
        where: its row, for messages.
        messages: what was said.
        learnt: positions of the answers that count, in order; none if the chat waits for an answer.
        options: what the template reads besides the messages, such as `tools` and `documents`, by name.
    """

    where: str
    messages: list[Message]
    learnt: tuple[int, ...]
    options: Mapping[str, Any] = field(default_factory=dict)


def is_chat(rows: Dataset, name: str) -> bool:
    """True if a column holds lists of messages, as `{"role", "content"}` or `{"from", "value"}`, or JSON text of them.

    Args:
        rows: the split.
        name: a column; one that the split lacks holds none.
    """
    return name in rows.column_names and bool(chat_columns(rows.select_columns([name])))


def chat_columns(rows: Dataset) -> list[str]:
    """Names of the columns of chats."""
    # Each selection of `datasets` copies the types of all columns, so there is one for all of them.
    sample = rows.select(range(min(len(rows), _SAMPLE))).with_format("arrow")[:]
    return [name for name, feature in rows.features.items() if _are_chats(feature, sample.column(name))]


def _are_chats(feature: Any, cells: Any) -> bool:
    """True if a column with that feature and these first cells, as Arrow has them, holds lists of messages."""
    fields = getattr(feature, "feature", None)
    if isinstance(fields, dict):
        return _has_keys(fields) and any(is_text(fields.get(key)) for key in SPEAKERS)
    if not (is_text(feature) or _is_json(feature) or _is_json(fields)):
        return False
    # One message tells: an empty list, or one with a fault, may come first.
    return any(map(_holds_messages, cells.to_pylist()))


def usual_chat(rows: Dataset) -> str | None:
    """The column of chats that has a usual name."""
    return find_column(rows.select_columns(chat_columns(rows)), "text", None, _CHATS, bool, "messages")


def is_usual_chat(rows: Dataset, name: str) -> bool:
    """True if a column holds chats and has a usual name."""
    return any(plain_name(name) in names for names in _CHATS) and is_chat(rows, name)


def are_prompts(rows: Dataset, columns: Columns) -> bool:
    """True if chats wait for their answers: by the name of their column, or since the assistant says nothing."""
    if columns.label is not None:
        return False
    return plain_name(columns.text) == "prompt" or not any(map(_has_answer, _cells(rows, columns.text)))


def only_chat(rows: Dataset) -> str | None:
    """The only column of chats, or the chosen ones of a data set of preferences."""
    names = {plain_name(name): name for name in chat_columns(rows)}
    if {*names} == {"chosen", "rejected"}:
        return names["chosen"]
    return next(iter(names.values())) if len(names) == 1 else None


def recognise_exchange(rows: Dataset, user_columns: Mapping[str, str | None]) -> Columns | None:
    """The columns of a chat and of its continuation, if both hold chats, as in TRL.

    They are `prompt` and `completion`, or `chosen` in a data set of preferences.
    """
    text, label = user_columns.get("text"), user_columns.get("label")
    if not all(name is None or is_chat(rows, name) for name in (text, label)):
        return None
    chats = rows.select_columns(chat_columns(rows))
    text = find_column(chats, "text", text, (("prompt",),), bool, "messages", (label,))
    label = find_column(chats, "label", label, _COMPLETIONS, bool, "messages", (text,))
    return None if text is None or label is None else Columns(text, None, label)


def waiting_chats(rows: Dataset, columns: Columns) -> tuple[Dataset, Columns]:
    """Chats that wait for their last answer, which is left out where they have it; a text is the user's only message.

    Returns:
        The rows, with their chats as JSON in a column `prompt`, and that column.

    Raises:
        UsageError: a row holds no list of messages, or none is left; names the row.
    """
    has_chats, prompts = is_chat(rows, columns.text), []
    for number, cell in zip(row_numbers(rows), _cells(rows, columns.text), strict=True):
        try:
            chat = _plain(cell) if has_chats else [{"role": USER, "content": cell}]
        except ValueError as error:
            raise UsageError(f"row {number}: {error}") from None
        if not isinstance(chat, list) or not all(isinstance(message, dict) for message in chat):
            raise UsageError(f"row {number}: it is not a list of messages")
        while chat and is_answer(chat[-1]):
            chat = chat[:-1]
        if not chat:
            raise UsageError(f"row {number}: there is no message to answer")
        prompts.append(json.dumps(chat, ensure_ascii=False, default=str))
    others = rows.remove_columns([name for name in {"prompt", columns.text} if name in rows.column_names])
    if not others.column_names:
        return datasets.Dataset.from_dict({"prompt": prompts}), Columns("prompt")
    return others.add_column("prompt", prompts), Columns("prompt")


def further_columns(rows: Dataset) -> dict[str, str]:
    """What stands beside the chats: the columns that hold it, by `system`, `tools`, `documents` and `options`."""
    kinds = {"system": _SYSTEM, "tools": _TOOLS, "documents": _DOCUMENTS, "options": _OPTIONS}
    columns: dict[str, str] = {}
    for name, feature in rows.features.items():
        kind = next((kind for kind, names in kinds.items() if plain_name(name) in names), None)
        fits = is_text(feature) if kind == "system" else _may_hold_records(feature)
        if kind is not None and fits and not is_chat(rows, name):
            columns.setdefault(kind, name)
    return columns


def read_chats(rows: Dataset, columns: Columns, *, waiting: bool = False) -> Iterator[Chat | ValueError]:
    """The chat of each row, or what is wrong with it; chats that wait for an answer need none."""
    beside = {kind: _cells(rows, name) for kind, name in further_columns(rows).items()}
    chats = _cells(rows, columns.text)
    completions: Iterable[Any] = [None] * len(rows) if columns.label is None else _cells(rows, columns.label)
    for at, (number, chat, completion) in enumerate(zip(row_numbers(rows), chats, completions, strict=True)):
        try:
            further = {kind: cells[at] for kind, cells in beside.items()}
            yield _read_chat(f"row {number}", chat, completion, columns.label, further, waiting)
        except ValueError as error:
            yield error


def chat_faults(rows: Dataset, columns: Columns) -> dict[int, str]:
    """The rows whose chats cannot be read, by position, each with what is wrong."""
    chats = read_chats(rows, columns, waiting=are_prompts(rows, columns))
    return {at: str(chat) for at, chat in enumerate(chats) if isinstance(chat, ValueError)}


def sound_chats(rows: Dataset, columns: Columns, *, waiting: bool = False) -> list[Chat]:
    """The chats of all rows.

    Raises:
        UsageError: one cannot be read; names the row.
    """
    chats = []
    for number, chat in zip(row_numbers(rows), read_chats(rows, columns, waiting=waiting), strict=True):
        if isinstance(chat, ValueError):
            raise UsageError(f"row {number}: {chat}; correct it or drop the row")
        chats.append(chat)
    return chats


def _read_chat(
    where: str, chat: Any, completion: Any, label: str | None, further: Mapping[str, Any], waiting: bool
) -> Chat:
    """One row.

    Raises:
        ValueError: it cannot be read, or has nothing to learn.
    """
    prompt, completion = _plain(chat) or [], _plain(completion) or []
    if label is None:
        prompt, completion = [], prompt
    elif completion[: len(prompt)] == prompt:
        # In data of preferences the answers often repeat the prompt.
        completion = completion[len(prompt) :]
    if not isinstance(prompt, list) or not isinstance(completion, list):
        raise ValueError("it is not a list of messages")
    messages = _standard_messages([*prompt, *completion])
    learnt = [] if waiting else _learnt(messages, len(prompt))
    if waiting and not messages:
        raise ValueError("there is no message")
    if not waiting and not learnt:
        raise ValueError(
            "the assistant answers no message, so there is nothing to learn"
            if label is None
            else f"the assistant says nothing in column {label!r}"
        )
    options, system = _options(further), further.get("system")
    if isinstance(system, str) and system.strip() and messages[0]["role"] not in (SYSTEM, DEVELOPER):
        messages, learnt = [{"role": SYSTEM, "content": system}, *messages], [at + 1 for at in learnt]
    return Chat(where, messages[: learnt[-1] + 1] if learnt else messages, tuple(learnt), options)


def _standard_messages(messages: Sequence[Any]) -> list[Message]:
    """The messages in standard form.

    Raises:
        ValueError: one cannot be read; names its number.
    """
    standard = []
    for number, message in enumerate(messages, start=1):
        try:
            standard.append(standard_message(message))
        except ValueError as error:
            raise ValueError(f"message {number} {error}") from None
    return standard


def _learnt(messages: Sequence[Message], skip: int) -> list[int]:
    """Positions of the answers that count: not those of the prompt, nor words that answer nothing.

    Raises:
        ValueError: one is empty, or its weight cannot be read; names its number.
    """
    learnt = []
    for at, message in enumerate(messages):
        try:
            if at >= max(1, skip) and is_learnt(message):
                learnt.append(at)
                if not message["content"].strip() and "tool_calls" not in message:
                    raise ValueError("is an empty answer")
        except ValueError as error:
            raise ValueError(f"message {at + 1} {error}") from None
    return learnt


def _options(further: Mapping[str, Any]) -> dict[str, Any]:
    """What the template reads besides the messages.

    Raises:
        ValueError: it is not of the form that templates take.
    """
    records = {}
    for kind in ("options", "tools", "documents"):
        try:
            records[kind] = _plain(further.get(kind))
        except ValueError as error:
            raise ValueError(f"its column of {kind} {error}") from None
    options = records["options"] or {}
    if not isinstance(options, dict) or any(name in _DECIDED for name in options):
        raise ValueError("chat_template_kwargs is not a record of the template's own variables")
    options = {name: value for name, value in options.items() if value is not None}
    tools = standard_tools(records["tools"] or options.pop("tools", None))
    documents = records["documents"] or options.pop("documents", None)
    return options | ({"tools": tools} if tools else {}) | ({"documents": documents} if documents else {})


def _has_keys(fields: Mapping[str, Any]) -> bool:
    return any(all(key in fields for key in keys) for keys in zip(SPEAKERS, TEXTS, strict=True))


def _has_answer(cell: Any) -> bool:
    try:
        chat = _plain(cell)
    except ValueError:
        return False
    return isinstance(chat, list) and any(isinstance(message, dict) and is_answer(message) for message in chat)


def _may_hold_records(feature: Any) -> bool:
    return cell_kind(feature) in ("text", "list", "other")


def _holds_messages(cell: Any) -> bool:
    try:
        chat = _plain(cell)
    except ValueError:
        return False
    return isinstance(chat, list) and any(isinstance(message, dict) and _has_keys(message) for message in chat)


def _is_json(feature: Any) -> bool:
    return type(feature).__name__ == "Json"


def _cells(rows: Dataset, name: str) -> Sequence[Any]:
    """The cells of a column, JSON still as text: the parser of `datasets` has no integers of more than 64 bits."""
    feature = rows.features[name]
    if _is_json(feature) or (cell_kind(feature) == "list" and _is_json(feature.feature)):
        texts: list[Any] = rows.with_format("arrow")[name][:].to_pylist()
        return texts
    return [without_nulls(cell) for cell in column_values(rows, name)]


def _plain(cell: Any) -> Any:
    """A cell, with what JSON text in it says.

    Raises:
        ValueError: a text is not JSON.
    """
    if isinstance(cell, list):
        return [parsed(entry) for entry in cell]
    return parsed(cell) if cell != "" else None
