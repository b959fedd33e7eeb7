"""Chats in the format of the model's own chat template, and which of their tokens count in the loss.

A template with `{% generation %}` marks those tokens itself. With any other template, the chat up to an answer is
rendered twice: as the prompt that asks for the answer, and with the answer. The answer is what the second text adds to
the first. The model sees the same prompt when it generates, so this holds even for templates that render earlier turns
differently, such as those of reasoning models; there, such turns become examples of their own.
"""

from __future__ import annotations

import dataclasses
import datetime
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from capaft.support.errors import UsageError, printable
from capaft.tasks.base.columns import Columns, column_values, find_column, is_text, plain_name, row_numbers
from capaft.tasks.language.example import Example, answer_example
from capaft.tasks.language.plain_text import special_tokens, tokenise_plain
from capaft.tasks.language.text_pairs import Pair
from capaft.tasks.language.token_loss import IGNORED

if TYPE_CHECKING:
    from datasets import Dataset

Message = dict[str, str]
"""A message in the form that chat templates expect: `{"role": ..., "content": ...}`."""

# Templates such as Llama 3.2's write today's date into every chat, but a run must not change from one day to the next.
# So a macro shadows the function that they ask, and answers with the date that they fall back to without it.
_DATE = datetime.datetime(2024, 7, 26)
_FILL_CODES = "".join(f" | replace('%{code}', '{_DATE.strftime(f'%{code}')}')" for code in "aAbBdeHIjmMpSyY")
_FIXED_DATE = f"{{%- macro strftime_now(format) -%}}{{{{ format{_FILL_CODES} }}}}{{%- endmacro -%}}"

# Names of the speakers in ShareGPT and similar data sets.
_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant"}
_KEYS = (("role", "content"), ("from", "value"))
_MARKERS = re.compile(r"\{%-?\s*generation\s*-?%\}")


def is_chat(feature: Any) -> bool:
    """True if each row holds a list of messages, as `{"role", "content"}` or `{"from", "value"}`."""
    fields = getattr(feature, "feature", None)
    return isinstance(fields, dict) and any(all(is_text(fields.get(key)) for key in keys) for keys in _KEYS)


def recognise_exchange(rows: Dataset, user_columns: Mapping[str, str | None]) -> Columns | None:
    """The columns of a chat and of its continuation, if both hold chats: `prompt` and `completion`, as in TRL."""
    text, label = user_columns.get("text"), user_columns.get("label")
    if not all(name is None or is_chat(rows.features.get(name)) for name in (text, label)):
        return None
    text = find_column(rows, "text", text, (("prompt",),), is_chat, "messages", (label,))
    label = find_column(rows, "label", label, (("completion",),), is_chat, "messages", (text,))
    return None if text is None or label is None else Columns(text, None, label)


def standard_messages(messages: Sequence[dict[str, Any]] | None, where: str) -> list[Message]:
    """Convert messages to the keys and roles of chat templates, and drop those after the assistant's last answer.

    Raises:
        UsageError: a message lacks its speaker or its text, or the assistant answers no message.
    """
    standard = _standard(messages, where)
    answers = [index for index, message in enumerate(standard) if index and message["role"] == "assistant"]
    if not answers:
        raise UsageError(f"{where}: the assistant answers no message, so there is nothing to learn; drop the row")
    return standard[: answers[-1] + 1]


def _standard(messages: Sequence[dict[str, Any]] | None, where: str) -> list[Message]:
    """The messages with the keys and roles of chat templates.

    Raises:
        UsageError: a message lacks its speaker or its text.
    """
    standard: list[Message] = []
    for number, message in enumerate(messages or (), start=1):
        role, content = next(
            ((message[speaker], message[text]) for speaker, text in _KEYS if speaker in message), (None, None)
        )
        if role is None or content is None:
            raise UsageError(f"{where}: message {number} has no speaker or no text; complete it or drop the row")
        standard.append({"role": _ROLES.get(role.lower(), role.lower()), "content": content})
    return standard


def has_template(tokenizer: Any) -> bool:
    """True if the tokenizer has a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


def turn_ends(tokenizer: Any) -> set[int]:
    """Tokens that end an answer: the end of a text, and the token that the template puts after an assistant's turn."""
    ends = {tokenizer.eos_token_id} - {None}
    if has_template(tokenizer):
        chat = _render(tokenizer, [_user_message("question"), _assistant_message("answer")], "the model")
        special = special_tokens(tokenizer)
        after_answer = tokenise_plain(tokenizer, [chat.rpartition("answer")[2]])[0]
        ends |= set([token for token in after_answer if token in special][:1])
    return ends


def read_chats(tokenizer: Any, rows: Dataset, columns: Columns) -> list[Example]:
    """The examples of a column of chats, or of two columns: prompts, and completions, whose answers alone count.

    Raises:
        UsageError: the model has no chat template, a completion has no answer, or as `standard_messages` and
            `chat_examples`; names the row.
    """
    _check_template(tokenizer, columns)
    stops = turn_ends(tokenizer)
    chats = [messages or [] for messages in column_values(rows, columns.text)]
    prompts, completions = (chats, column_values(rows, columns.label)) if columns.label else ([[]] * len(chats), chats)
    examples = []
    for row, prompt, completion in zip(row_numbers(rows), prompts, completions, strict=True):
        messages = standard_messages([*prompt, *(completion or [])], f"row {row}")
        if len(messages) <= len(prompt):
            raise UsageError(f"row {row}: the assistant says nothing in column {columns.label!r}; drop the row")
        examples += chat_examples(tokenizer, messages, stops, f"row {row}", len(prompt))
    return examples


def are_prompts(rows: Dataset, columns: Columns) -> bool:
    """True if chats wait for their answers: by the name of their column, or since the assistant says nothing."""
    if columns.label is not None:
        return False
    chats = (_standard(messages, "a row") for messages in column_values(rows, columns.text))
    return plain_name(columns.text) == "prompt" or not any(m["role"] == "assistant" for chat in chats for m in chat)


def read_prompts(tokenizer: Any, rows: Dataset, columns: Columns) -> list[Example]:
    """The examples of a column of chats that wait for an answer: whole prompts, without references.

    Raises:
        UsageError: the model has no chat template, or a message lacks its speaker or its text; names the row.
    """
    _check_template(tokenizer, columns)
    examples = []
    for row, messages in zip(row_numbers(rows), column_values(rows, columns.text), strict=True):
        text = _render_prompt(tokenizer, _standard(messages, f"row {row}"), f"row {row}")
        examples.append(answer_example(tokenise_plain(tokenizer, [text])[0], [], text, ()))
    return examples


def _check_template(tokenizer: Any, columns: Columns) -> None:
    if not has_template(tokenizer):
        raise UsageError(
            f"column {columns.text!r} holds chats, but this model has no chat template; "
            "choose a chat model, or use columns of prompts and completions"
        )


def chat_examples(
    tokenizer: Any, messages: Sequence[Message], stops: set[int], where: str, skip: int = 0
) -> list[Example]:
    """One example for all answers of a chat, or several if the template does not render them in one text.

    Args:
        tokenizer: one with a chat template.
        messages: the chat; its last message is an answer.
        stops: tokens that end an answer; what the template puts after them does not count.
        where: the row, for error messages.
        skip: number of leading messages that do not count, even if they are answers.

    Raises:
        UsageError: the template rejects the chat, or does not put an answer after the prompt that asks for it.
    """
    answers = [index for index, message in enumerate(messages) if index and message["role"] == "assistant"]
    counted = [index for index in answers if index >= skip]
    # The template's markers cover every answer, so they are of no use if only some count.
    if counted == answers and _MARKERS.search(tokenizer.get_chat_template()) and tokenizer.is_fast:
        return [_marked_example(tokenizer, messages, where)]
    examples: list[Example] = []
    # Last answer first: its text usually begins with that of every earlier one, whose labels it then takes over.
    for index in reversed(counted):
        turn = _last_answer_example(tokenizer, messages[: index + 1], stops, where)
        longer = next((example for example in examples if example.ids[: len(turn.ids)] == turn.ids), None)
        if longer is None:
            examples.append(turn)
        else:
            longer.labels[len(turn.prompt) : len(turn.ids)] = turn.labels[len(turn.prompt) :]
    return examples[::-1]


def pair_example(tokenizer: Any, pair: Pair, stops: set[int]) -> Example:
    """A source as the user's message and its first reference, if it has one, as the answer.

    Raises:
        UsageError: as `chat_examples`.
    """
    question, where = [_user_message(pair.source)], f"row {pair.row}"
    if not pair.references:
        prompt = tokenise_plain(tokenizer, [_render_prompt(tokenizer, question, where)])[0]
        return answer_example(prompt, [], pair.source, ())
    (example,) = chat_examples(tokenizer, [*question, _assistant_message(pair.references[0])], stops, where)
    return dataclasses.replace(example, source=pair.source, references=pair.references)


def _user_message(text: str) -> Message:
    return {"role": "user", "content": text}


def _assistant_message(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _last_answer_example(tokenizer: Any, messages: Sequence[Message], stops: set[int], where: str) -> Example:
    """The example in which only the last answer counts, up to the token that ends it."""
    prompt_text, text = _render_prompt(tokenizer, messages[:-1], where), _render(tokenizer, messages, where)
    if not text.startswith(prompt_text):
        raise UsageError(
            f"{where}: the model's chat template does not put an answer after the prompt that asks for it; "
            "use a template with {% generation %} markers, or --no-chat-template with prompts and completions"
        )
    prompt, ids = tokenise_plain(tokenizer, [prompt_text, text])
    answer = ids[len(prompt) :]
    if ids[: len(prompt)] != prompt:
        # White space on both sides of the boundary became one token, but in generation the prompt ends there.
        answer = tokenise_plain(tokenizer, [text[len(prompt_text) :]])[0]
    end = max((length for length, token in enumerate(answer, start=1) if token in stops), default=len(answer))
    return answer_example(prompt, answer[:end], prompt_text, (messages[-1]["content"],))


def _marked_example(tokenizer: Any, messages: Sequence[Message], where: str) -> Example:
    """The example in which the tokens between the template's own markers count."""
    prompt_text = _render_prompt(tokenizer, messages[:-1], where)
    encoding = _render(tokenizer, messages, where, tokenize=True, return_assistant_tokens_mask=True)
    ids, mask = encoding["input_ids"], encoding["assistant_masks"]
    labels = [token if counts else IGNORED for token, counts in zip(ids, mask, strict=True)]
    prompt = tokenise_plain(tokenizer, [prompt_text])[0]
    return Example(ids, labels, prompt, prompt_text, (messages[-1]["content"],))


def _render_prompt(tokenizer: Any, messages: Sequence[Message], where: str) -> str:
    """The text that asks the model for its answer to the messages."""
    return _render(tokenizer, messages, where, add_generation_prompt=True)


def _render(tokenizer: Any, messages: Sequence[Message], where: str, **options: Any) -> Any:
    """The messages in the chat template, as text unless the options of `apply_chat_template` say otherwise."""
    from jinja2 import TemplateError

    if "strftime_now" in str(tokenizer.chat_template):
        options["chat_template"] = _FIXED_DATE + tokenizer.get_chat_template()
    try:
        return tokenizer.apply_chat_template(list(messages), **{"tokenize": False, "return_dict": True, **options})
    except (TemplateError, TypeError, ValueError) as error:
        reason = printable(" ".join(str(error).split())[:200])
        raise UsageError(f"{where}: the model's chat template rejects this chat: {reason}") from None
