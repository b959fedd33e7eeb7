"""Chats in the words of the model's own template, and which of their tokens the assistant says.

Templates with `{% generation %}` mark those tokens themselves. With any other template the chat up to an answer is
rendered twice, once as the prompt that asks for the answer and once with it: what the second adds to the first is the
answer. This is what the model sees when it generates, so it holds for templates that render earlier turns differently,
as those of reasoning models do; such turns become examples of their own.
"""

from __future__ import annotations

import dataclasses
import datetime
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from capaft.support.errors import UsageError, printable
from capaft.tasks.base.columns import Columns, column_values, find_column, is_text, row_numbers
from capaft.tasks.language.example import Example, answered
from capaft.tasks.language.plain_text import special_tokens, tokenise_plain
from capaft.tasks.language.text_pairs import Pair
from capaft.tasks.language.token_loss import IGNORED

if TYPE_CHECKING:
    from datasets import Dataset

Message = dict[str, str]

# Templates such as Llama 3.2's write today's date into every chat, and a run must not change from one day to the next.
# This is the date that such templates have where they are not told one, and a macro that hides the function which asks.
_DAY = datetime.datetime(2024, 7, 26)
_FIXED = "".join(f" | replace('%{code}', '{_DAY.strftime(f'%{code}')}')" for code in "aAbBdeHIjmMpSyY")
_SAME_DAY = f"{{%- macro strftime_now(format) -%}}{{{{ format{_FIXED} }}}}{{%- endmacro -%}}"

# What ShareGPT and its kin call the speakers.
_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant"}
_KEYS = (("role", "content"), ("from", "value"))
_MARKERS = re.compile(r"\{%-?\s*generation\s*-?%\}")


def is_chat(feature: Any) -> bool:
    """Whether a column holds a list of messages, `{"role", "content"}` or `{"from", "value"}`, a row."""
    fields = getattr(feature, "feature", None)
    return isinstance(fields, dict) and any(all(is_text(fields.get(key)) for key in keys) for keys in _KEYS)


def recognise_exchange(rows: Dataset, given: Mapping[str, str | None]) -> Columns | None:
    """The columns of a chat and of how it goes on, if both are chats: `prompt` and `completion`, as TRL calls them."""
    text, label = given.get("text"), given.get("label")
    if not all(name is None or is_chat(rows.features.get(name)) for name in (text, label)):
        return None
    text = find_column(rows, "text", text, (("prompt",),), is_chat, "messages", (label,))
    label = find_column(rows, "label", label, (("completion",),), is_chat, "messages", (text,))
    return None if text is None or label is None else Columns(text, None, label)


def conversation(messages: Sequence[dict[str, Any]] | None, where: str) -> list[Message]:
    """The messages with their roles as templates call them, up to the last of the assistant.

    Raises:
        UsageError: a message lacks its speaker or its text, or the assistant answers nothing.
    """
    found = []
    for number, message in enumerate(messages or (), start=1):
        role, content = next(((message[a], message[b]) for a, b in _KEYS if a in message), (None, None))
        if role is None or content is None:
            raise UsageError(f"{where}: message {number} has no speaker or no text; complete it or drop the row")
        found.append({"role": _ROLES.get(role.lower(), role.lower()), "content": content})
    answers = [number for number, message in enumerate(found) if number and message["role"] == "assistant"]
    if not answers:
        raise UsageError(f"{where}: the assistant answers to nothing in it, so there is nothing to learn; drop the row")
    return found[: answers[-1] + 1]


def has_template(tokenizer: Any) -> bool:
    """Whether the model was made for chats."""
    return bool(getattr(tokenizer, "chat_template", None))


def turn_ends(tokenizer: Any) -> set[int]:
    """The tokens that end an answer: the end of a text, and what the template puts after what the assistant says."""
    found = {tokenizer.eos_token_id} - {None}
    if has_template(tokenizer):
        whole = _rendered(tokenizer, [_user("question"), _assistant("answer")], "the model")
        special = special_tokens(tokenizer)
        after = tokenise_plain(tokenizer, [whole.rpartition("answer")[2]])[0]
        found |= set([token for token in after if token in special][:1])
    return found


def conversations(tokenizer: Any, rows: Dataset, columns: Columns) -> list[Example]:
    """The examples of a column of chats, or of two of which the second goes on with the first and alone is learnt.

    Raises:
        UsageError: the model has no chat template, the second column has no answer, or as `conversation` and
            `examples`; names the row.
    """
    if not has_template(tokenizer):
        raise UsageError(
            f"column {columns.text!r} holds chats, and this model has no chat template to put them into; "
            "take a model that was made for chats, or columns of prompts and completions"
        )
    stops = turn_ends(tokenizer)
    firsts = [messages or [] for messages in column_values(rows, columns.text)]
    given, seconds = (firsts, column_values(rows, columns.label)) if columns.label else ([[]] * len(firsts), firsts)
    found = []
    for row, before, after in zip(row_numbers(rows), given, seconds, strict=True):
        messages = conversation([*before, *(after or [])], f"row {row}")
        if len(messages) <= len(before):
            raise UsageError(f"row {row}: the assistant says nothing in column {columns.label!r}; drop the row")
        found += chat_examples(tokenizer, messages, stops, f"row {row}", len(before))
    return found


def chat_examples(
    tokenizer: Any, messages: Sequence[Message], stops: set[int], where: str, given: int = 0
) -> list[Example]:
    """One example for all answers of a chat, or several where the template does not render them in one text.

    Args:
        tokenizer: has a chat template.
        messages: of which the last is an answer.
        stops: tokens that end an answer; what the template puts after them does not count.
        where: names the row in messages.
        given: so many messages at the beginning do not count, whoever says them.

    Raises:
        UsageError: the template refuses the chat, or does not put an answer after the prompt that asks for it.
    """
    answers = [number for number, message in enumerate(messages) if number and message["role"] == "assistant"]
    counted = [number for number in answers if number >= given]
    # Markers do not tell the answers that count from those that do not.
    if counted == answers and _MARKERS.search(tokenizer.get_chat_template()) and tokenizer.is_fast:
        return [_marked(tokenizer, messages, where)]
    found: list[Example] = []
    for number in reversed(counted):
        turn = _answered(tokenizer, messages[: number + 1], stops, where)
        whole = next((each for each in found if each.ids[: len(turn.ids)] == turn.ids), None)
        if whole is None:
            found.append(turn)
        else:
            whole.labels[len(turn.prompt) : len(turn.ids)] = turn.labels[len(turn.prompt) :]
    return found[::-1]


def exchange(tokenizer: Any, pair: Pair, stops: set[int]) -> Example:
    """A source and its first reference as a chat.

    Raises:
        UsageError: as `examples`.
    """
    question, where = [_user(pair.source)], f"row {pair.row}"
    if not pair.references:
        return answered(tokenise_plain(tokenizer, [_asked(tokenizer, question, where)])[0], [], pair.source, ())
    (found,) = chat_examples(tokenizer, [*question, _assistant(pair.references[0])], stops, where)
    return dataclasses.replace(found, source=pair.source, references=pair.references)


def _asked(tokenizer: Any, messages: Sequence[Message], where: str) -> str:
    """The text that asks the model for its answer to the messages."""
    return _rendered(tokenizer, messages, where, add_generation_prompt=True)


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _answered(tokenizer: Any, messages: Sequence[Message], stops: set[int], where: str) -> Example:
    """The example of the last answer alone."""
    before, after = _asked(tokenizer, messages[:-1], where), _rendered(tokenizer, messages, where)
    if not after.startswith(before):
        raise UsageError(
            f"{where}: the model's chat template does not put an answer after the prompt that asks for it; "
            "use a template with {% generation %} markers, or --no-chat-template with prompts and completions"
        )
    prompt, ids = tokenise_plain(tokenizer, [before, after])
    answer = ids[len(prompt) :]
    if ids[: len(prompt)] != prompt:
        # White space on both sides of the seam makes one token; a prompt ends there all the same.
        answer = tokenise_plain(tokenizer, [after[len(before) :]])[0]
    stop = max((place for place, token in enumerate(answer, start=1) if token in stops), default=len(answer))
    return answered(prompt, answer[:stop], before, (messages[-1]["content"],))


def _marked(tokenizer: Any, messages: Sequence[Message], where: str) -> Example:
    """The example in which the template's own markers say what counts."""
    before = _asked(tokenizer, messages[:-1], where)
    found = _rendered(tokenizer, messages, where, tokenize=True, return_assistant_tokens_mask=True)
    ids = found["input_ids"]
    labels = [token if counts else IGNORED for token, counts in zip(ids, found["assistant_masks"], strict=True)]
    prompt = tokenise_plain(tokenizer, [before])[0]
    return Example(ids, labels, prompt, before, (messages[-1]["content"],))


def _rendered(tokenizer: Any, messages: Sequence[Message], where: str, **options: Any) -> Any:
    from jinja2 import TemplateError

    if "strftime_now" in str(tokenizer.chat_template):
        options["chat_template"] = _SAME_DAY + tokenizer.get_chat_template()
    try:
        return tokenizer.apply_chat_template(list(messages), **{"tokenize": False, "return_dict": True, **options})
    except (TemplateError, TypeError, ValueError) as error:
        said = printable(" ".join(str(error).split())[:200])
        raise UsageError(f"{where}: the model's chat template does not take this chat: {said}") from None
