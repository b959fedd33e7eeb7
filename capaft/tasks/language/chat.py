"""Examples of chats, and which of their tokens count in the loss.

A template with `{% generation %}` marks those tokens itself. With any other template, the chat up to an answer is
rendered twice: as the prompt that asks for the answer, and with the answer. The answer is what the second text adds to
the first. The model sees the same prompt when it generates, so this holds even for templates that render earlier turns
differently, such as those of reasoning models; there, such turns become examples of their own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from capaft.support.errors import UsageError
from capaft.tasks.base.columns import Columns
from capaft.tasks.language.chat_columns import Chat, further_columns, sound_chats
from capaft.tasks.language.chat_template import (
    exchange,
    fit_chats,
    has_markers,
    has_template,
    render,
    render_prompt,
    turn_ends,
)
from capaft.tasks.language.example import Example, answer_example
from capaft.tasks.language.framing import frame
from capaft.tasks.language.messages import ASSISTANT
from capaft.tasks.language.plain_text import tokenise_plain
from capaft.tasks.language.text_pairs import Pair
from capaft.tasks.language.token_loss import IGNORED

if TYPE_CHECKING:
    from datasets import Dataset


def chat_rows_examples(
    tokenizer: Any, rows: Dataset, columns: Columns, *, waiting: bool = False
) -> tuple[list[Example], list[str]]:
    """The examples of a column of chats, or of two columns: prompts, and completions, whose answers alone count.

    Args:
        tokenizer: of the model.
        rows: the split.
        columns: its columns.
        waiting: the chats wait for an answer: they are whole prompts, without references.

    Returns:
        The examples, and lines that say what was read and what was not.

    Raises:
        UsageError: the model has no chat template, or as `sound_chats`, `fit_chats` and `chat_examples`; names the row.
    """
    if not has_template(tokenizer):
        raise UsageError(
            f"column {columns.text!r} holds chats, but this model has no chat template; "
            "choose a chat model, or use columns of prompts and completions"
        )
    stops = turn_ends(tokenizer)
    chats, framed = _unframed(tokenizer, sound_chats(rows, columns, waiting=waiting), stops)
    chats, unread = fit_chats(tokenizer, chats)
    beside = ", ".join(map(repr, further_columns(rows).values()))
    read = [f"each chat with its {beside}"] if beside else []
    examples = [example for chat in chats for example in chat_examples(tokenizer, chat, stops)]
    return examples, [*read, *framed, *unread]


def chat_examples(tokenizer: Any, chat: Chat, stops: Collection[int]) -> list[Example]:
    """One example for all answers of a chat, or several if the template does not render them in one text.

    Args:
        tokenizer: one with a chat template.
        chat: its last message is an answer that counts, or it waits for one and has none.
        stops: tokens that end an answer; what the template puts after them does not count.

    Raises:
        UsageError: the template rejects the chat, or does not put an answer after the prompt that asks for it.
    """
    if not chat.learnt:
        prompt_text = render_prompt(tokenizer, chat, len(chat.messages))
        return [answer_example(tokenise_plain(tokenizer, [prompt_text])[0], [], prompt_text, ())]
    answers = tuple(at for at, message in enumerate(chat.messages) if message["role"] == ASSISTANT)
    # The template's markers cover every answer, so they are of no use if only some count.
    if chat.learnt == answers and has_markers(tokenizer, chat):
        marked = _marked_example(tokenizer, chat)
        if marked is not None:
            return [marked]
    examples: list[Example] = []
    # Last answer first: its text usually begins with that of every earlier one, whose labels it then takes over.
    for at in reversed(chat.learnt):
        turn = _answer_example(tokenizer, chat, at, stops)
        longer = next((example for example in examples if example.ids[: len(turn.ids)] == turn.ids), None)
        if longer is None:
            examples.append(turn)
        else:
            longer.labels[len(turn.prompt) : len(turn.ids)] = turn.labels[len(turn.prompt) :]
    return examples[::-1]


def pair_example(tokenizer: Any, pair: Pair, stops: Collection[int]) -> Example:
    """A source as the user's message and its first reference, if it has one, as the answer.

    Raises:
        UsageError: as `chat_examples`.
    """
    chat = exchange(pair.source, "".join(pair.references[:1]), f"row {pair.row}")
    if not pair.references:
        chat = dataclasses.replace(chat, messages=chat.messages[:-1], learnt=())
    (example,) = chat_examples(tokenizer, chat, stops)
    return dataclasses.replace(example, source=pair.source, references=pair.references)


def _unframed(tokenizer: Any, chats: Sequence[Chat], stops: Collection[int]) -> tuple[list[Chat], list[str]]:
    """Chats whose messages neither begin with the token that begins a text nor end with one that ends an answer.

    Raises:
        UsageError: nothing else is in an answer.
    """
    around = frame(tokenizer, [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id], ends=sorted(stops))
    bare, changed = [], 0
    for chat in chats:
        messages = [{**message, "content": around.strip(message["content"])} for message in chat.messages]
        changed += messages != chat.messages
        if not all(messages[at]["content"].strip() or "tool_calls" in messages[at] for at in chat.learnt):
            raise UsageError(f"{chat.where}: an answer has nothing but special tokens; drop the row")
        bare.append(dataclasses.replace(chat, messages=messages))
    return bare, around.note(changed, len(chats), "chats")


def _answer_example(tokenizer: Any, chat: Chat, at: int, stops: Collection[int]) -> Example:
    """The example in which only the answer at a place counts, up to the token that ends it."""
    prompt_text, text = render_prompt(tokenizer, chat, at), str(render(tokenizer, chat, at + 1))
    if not text.startswith(prompt_text):
        raise UsageError(
            f"{chat.where}: the model's chat template does not put an answer after the prompt that asks for it; "
            "use a template with {% generation %} markers, or --no-chat-template with prompts and completions"
        )
    prompt, ids = tokenise_plain(tokenizer, [prompt_text, text])
    answer = ids[len(prompt) :]
    if ids[: len(prompt)] != prompt:
        # White space on both sides of the boundary became one token, but in generation the prompt ends there.
        answer = tokenise_plain(tokenizer, [text[len(prompt_text) :]])[0]
    end = max((length for length, token in enumerate(answer, start=1) if token in stops), default=len(answer))
    return answer_example(prompt, answer[:end], prompt_text, (_reference(tokenizer, chat, at, answer[:end]),))


def _marked_example(tokenizer: Any, chat: Chat) -> Example | None:
    """The example in which the tokens between the template's own markers count; None if they leave out a tool call."""
    encoding = render(tokenizer, chat, tokenize=True, return_assistant_tokens_mask=True)
    ids, mask = encoding["input_ids"], encoding["assistant_masks"]
    labels = [token if counts else IGNORED for token, counts in zip(ids, mask, strict=True)]
    marked = tokenizer.decode([token for token in labels if token != IGNORED])
    calls = [call for message in chat.messages for call in message.get("tool_calls", ())]
    if not all(call["function"]["name"] in marked for call in calls):
        return None
    prompt_text = render_prompt(tokenizer, chat, len(chat.messages) - 1)
    prompt, answer = tokenise_plain(tokenizer, [prompt_text, str(render(tokenizer, chat))[len(prompt_text) :]])
    reference = _reference(tokenizer, chat, len(chat.messages) - 1, answer)
    return Example(ids, labels, prompt, prompt_text, (reference,))


def _reference(tokenizer: Any, chat: Chat, at: int, answer: Sequence[int]) -> str:
    """The text that a model's is compared with: the answer, as its tokens say it if it has more than a content."""
    message = chat.messages[at]
    if message.keys() <= {"role", "content", "weight", "id", "name"}:
        return str(message["content"])
    return str(tokenizer.decode(answer, skip_special_tokens=True, clean_up_tokenization_spaces=False)).strip()
