"""The model's own chat template: chats as text, and what of a chat it renders.

A template reads the fields that its author thought of and passes over all others without a word, so that a model would
be trained on chats with their tools, or their reasoning, left out. So for each field that a data set has, one chat is
rendered with another value in it, and a field that makes no difference is refused, or named if it is no content.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from capaft.support.errors import UsageError, one_line
from capaft.support.printable import printable
from capaft.tasks.language.chat_columns import Chat
from capaft.tasks.language.messages import ASSISTANT, DEVELOPER, SYSTEM, TOOL, USER
from capaft.tasks.language.plain_text import special_tokens, tokenise_plain

# Templates such as Llama 3.2's write today's date into every chat, but a run must not change from one day to the next.
# So a macro shadows the function that they ask, and answers with the date that they fall back to without it.
_DATE = datetime.datetime(2024, 7, 26)
_FILL_CODES = "".join(f" | replace('%{code}', '{_DATE.strftime(f'%{code}')}')" for code in "aAbBdeHIjmMpSyY")
_FIXED_DATE = f"{{%- macro strftime_now(format) -%}}{{{{ format{_FILL_CODES} }}}}{{%- endmacro -%}}"

_MARKERS = re.compile(r"\{%-?\s*generation\s*-?%\}")
# A word that no chat has, to look for in the text.
_PROBE, _PROBE_VALUE = "capaftprobe", "capaftvalue"
# Fields of a message that say what the assistant thought or saw; without them its answers are other answers.
_CONTENT = {"reasoning_content", "reasoning", "thinking", "thoughts", "images", "image", "audio", "video", "videos"}
# Fields that number a message or belong to the training.
_BOOKKEEPING = {"id", "tool_call_id", "weight"}


def has_template(tokenizer: Any) -> bool:
    """True if the tokenizer has a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


def has_markers(tokenizer: Any, chat: Chat) -> bool:
    """True if the template marks the assistant's tokens itself, and the tokenizer can say which they are."""
    return bool(_MARKERS.search(_source(tokenizer, chat.options)) and tokenizer.is_fast)


def turn_ends(tokenizer: Any) -> set[int]:
    """Tokens that end an answer: the end of a text, and the token that the template puts after an assistant's turn."""
    ends = {tokenizer.eos_token_id} - {None}
    if has_template(tokenizer):
        chat = render(tokenizer, exchange("question", "answer"))
        special = special_tokens(tokenizer)
        after_answer = tokenise_plain(tokenizer, [chat.rpartition("answer")[2]])[0]
        ends |= set([token for token in after_answer if token in special][:1])
    return ends


def exchange(question: str, answer: str, where: str = "the model", system: str = "") -> Chat:
    """A chat of a question and its answer, after a system text if it is not empty."""
    messages = [{"role": SYSTEM, "content": system}] if system else []
    messages += [{"role": USER, "content": question}, {"role": ASSISTANT, "content": answer}]
    return Chat(where, messages, (len(messages) - 1,))


def render(tokenizer: Any, chat: Chat, length: int | None = None, **options: Any) -> Any:
    """The first `length` messages of a chat, or all, in the template.

    Returns:
        Text, unless the options of `apply_chat_template` say otherwise.

    Raises:
        UsageError: the template rejects the chat; names its row.
    """
    from jinja2 import TemplateError

    options = {"tokenize": False, "return_dict": True, **chat.options, **options}
    if "strftime_now" in _source(tokenizer, chat.options):
        options["chat_template"] = _FIXED_DATE + _source(tokenizer, chat.options)
    try:
        return tokenizer.apply_chat_template(chat.messages[:length], **options)
    except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
        reason = printable(" ".join(str(error).split())[:200])
        raise UsageError(f"{chat.where}: the model's chat template rejects this chat: {reason}") from None


def render_prompt(tokenizer: Any, chat: Chat, length: int) -> str:
    """The text that asks the model for its answer to the first `length` messages of a chat."""
    return str(render(tokenizer, chat, length, add_generation_prompt=True))


def fit_chats(tokenizer: Any, chats: Sequence[Chat]) -> tuple[list[Chat], list[str]]:
    """Chats in the form that a template reads, with what it leaves out, a line each.

    `developer` is `system` where a template does not know it. The arguments of tool calls are records, or JSON text
    where a template takes only that.

    Raises:
        UsageError: the template rejects a chat, or does not render what one says: a role, a tool call, its tools,
            its reasoning. Names the row and the field.
    """
    sources = {name: _source(tokenizer, {"tools": [{}]} if name else {}) for name in (False, True)}
    if not any(f"'{DEVELOPER}'" in source or f'"{DEVELOPER}"' in source for source in sources.values()):
        chats = [_with_system_for_developer(chat) for chat in chats]
    chats = _with_calls_that_fit(tokenizer, chats)
    unread: dict[str, None] = {}
    for kind, (chat, at) in _first_of_each(chats).items():
        name, role = kind
        if at is None:
            _check_option(tokenizer, chat, name, unread)
        elif name == "content":
            if not _shows(tokenizer, chat, at, {"content": _PROBE}):
                _refuse(chat, f"messages of the role {role!r}")
        elif name == "content beside tool_calls":
            if not _shows(tokenizer, chat, at, {"content": _PROBE}):
                unread["the text of an answer that has tool_calls"] = None
        elif not _shows(tokenizer, chat, at, {name: _PROBE if isinstance(chat.messages[at][name], str) else None}):
            if name in _CONTENT:
                _refuse(chat, f"the field {name!r} of a message")
            unread[f"{name!r} of the role {role!r}"] = None
    return list(chats), [f"the model's chat template does not read {', '.join(unread)}"] if unread else []


def _source(tokenizer: Any, options: Mapping[str, Any]) -> str:
    """The template's source; some models have another one for chats with tools.

    Raises:
        UsageError: the model has several templates, and none is the default.
    """
    try:
        return str(tokenizer.get_chat_template(tools=options.get("tools")))
    except ValueError as error:
        raise UsageError(
            f"the model's chat templates cannot be used: {one_line(error)}; choose another model"
        ) from None


def _first_of_each(chats: Sequence[Chat]) -> dict[tuple[str, str], tuple[Chat, int | None]]:
    """The first chat that has a field, and the message that has it, by the names of the field and of the role.

    Fields of the chat itself, such as `tools`, have no message and no role.
    """
    first: dict[tuple[str, str], tuple[Chat, int | None]] = {}
    for chat in chats:
        for name in chat.options:
            first.setdefault((name, ""), (chat, None))
        for at, message in enumerate(chat.messages):
            role = message["role"]
            for name in message.keys() - {"role", "content", "tool_calls"} - _BOOKKEEPING:
                if (name, role) != ("name", TOOL):
                    first.setdefault((name, role), (chat, at))
            if message["content"].strip():
                kind = "content beside tool_calls" if "tool_calls" in message else "content"
                first.setdefault((kind, role), (chat, at))
    return first


def _check_option(tokenizer: Any, chat: Chat, name: str, unread: dict[str, None]) -> None:
    """Note, or refuse, what the template has no variable for.

    Raises:
        UsageError: it is more than a switch.
    """
    if name == "tools":
        length = chat.learnt[0] if chat.learnt else len(chat.messages)
        bare = dataclasses.replace(chat, options={key: value for key, value in chat.options.items() if key != name})
        is_read = render_prompt(tokenizer, chat, length) != render_prompt(tokenizer, bare, length)
    else:
        # A variable may have the value that a template assumes without it, so its name has to do.
        is_read = bool(re.search(rf"\b{re.escape(name)}\b", _source(tokenizer, chat.options)))
    if not is_read and isinstance(chat.options[name], bool):
        unread[f"the variable {name!r}"] = None
    elif not is_read:
        _refuse(chat, repr(name))


def _refuse(chat: Chat, what: str) -> None:
    raise UsageError(
        f"{chat.where}: the model's chat template does not render {what}; "
        "drop it from the data, or choose a model whose template does"
    )


def _shows(tokenizer: Any, chat: Chat, at: int, change: Mapping[str, Any]) -> bool:
    """True if the text shows a message's changed field: the probe in it, or that it has gone if it is None."""
    messages = [*chat.messages]
    messages[at] = {**messages[at], **change}
    messages[at] = {key: value for key, value in messages[at].items() if value is not None}
    text = _text_with(tokenizer, dataclasses.replace(chat, messages=messages), at)
    return _PROBE in text if _PROBE in change.values() else text != _text_with(tokenizer, chat, at)


def _text_with(tokenizer: Any, chat: Chat, at: int) -> str:
    """The text that a message counts in: an answer's own, or the prompt of the next answer."""
    if chat.messages[at]["role"] == ASSISTANT:
        return str(render(tokenizer, chat, at + 1))
    answers = (later for later in range(at, len(chat.messages)) if chat.messages[later]["role"] == ASSISTANT)
    return render_prompt(tokenizer, chat, next(answers, len(chat.messages)))


def _with_calls_that_fit(tokenizer: Any, chats: Sequence[Chat]) -> Sequence[Chat]:
    """Chats whose tool calls have the form that the template renders.

    Raises:
        UsageError: it renders them in no form.
    """
    where = ((chat, at) for chat in chats for at, message in enumerate(chat.messages) if "tool_calls" in message)
    chat, at = next(where, (None, 0))
    if chat is None:
        return chats
    refusal = None
    for form in (dict, _as_json):
        probe = _with_arguments(_with_arguments(chat, _probed), form)
        try:
            text = _text_with(tokenizer, probe, at)
        except UsageError as error:
            refusal = refusal or error
            continue
        # In single quotes it is a record as Python writes it, which is not JSON.
        if _PROBE in text and _PROBE_VALUE in text and f"'{_PROBE}'" not in text:
            return [_with_arguments(other, form) for other in chats]
    if refusal is not None:
        raise refusal
    _refuse(chat, "'tool_calls'")
    return chats


def _with_system_for_developer(chat: Chat) -> Chat:
    roles = {DEVELOPER: SYSTEM}
    messages = [{**message, "role": roles.get(message["role"], message["role"])} for message in chat.messages]
    return dataclasses.replace(chat, messages=messages)


def _with_arguments(chat: Chat, form: Callable[[dict[str, Any]], Any]) -> Chat:
    """The chat with the arguments of its tool calls in another form."""

    def changed(call: dict[str, Any]) -> dict[str, Any]:
        function = call["function"]
        return {**call, "function": {**function, "arguments": form(function["arguments"])}}

    messages = [
        {**message, "tool_calls": list(map(changed, message["tool_calls"]))} if "tool_calls" in message else message
        for message in chat.messages
    ]
    return dataclasses.replace(chat, messages=messages)


def _probed(arguments: dict[str, Any]) -> dict[str, Any]:
    return {_PROBE: _PROBE_VALUE}


def _as_json(arguments: dict[str, Any]) -> str:
    return json.dumps(arguments, ensure_ascii=False)
