"""Prompts in the form that a run was trained on: in the chat template, in its own format, or as they are."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from datasets import Dataset

from capaft.data.json_records import whole_characters
from capaft.model.load import BaseModel
from capaft.support.errors import UsageError
from capaft.tasks.base.columns import Columns
from capaft.tasks.base.features import Features
from capaft.tasks.causal_lm import MESSAGES, PROMPT, TEXT, CausalLM
from capaft.tasks.language.chat_template import has_template
from capaft.tasks.language.generation import Generation
from capaft.tasks.language.messages import USER, Message
from capaft.tasks.language.token_loss import TOKEN_METRICS

# The training cut examples for the sake of its memory; a prompt may be as long as the model allows.
UNLIMITED = sys.maxsize


def user_message(text: str) -> Message:
    """A message of the user."""
    return {"role": USER, "content": text}


def in_template(task: Generation, base: BaseModel, is_wanted: bool | None) -> Generation:
    """The task with prompts in the checkpoint's chat template or not, whatever the run was trained on.

    Args:
        task: one that writes.
        base: its base model.
        is_wanted: True to put prompts into the template, False to leave them out; None to leave the task as it is.

    Raises:
        UsageError: the checkpoint has no template, or the task takes none.
    """
    if is_wanted is None or is_wanted == takes_chats(task, base):
        return task
    if not isinstance(task, CausalLM) or not has_template(base.processor):
        if not is_wanted:
            return task
        raise UsageError("--chat-template needs a causal language model whose tokenizer has a chat template; drop it")
    if task.layout == PROMPT:
        return dataclasses.replace(task, chat_template=is_wanted)
    # Only metrics that compare no texts go with plain text.
    return dataclasses.replace(task, layout=MESSAGES if is_wanted else TEXT, metric=TOKEN_METRICS[0])


def takes_chats(task: Generation, base: BaseModel) -> bool:
    """True if prompts go into the checkpoint's chat template, which takes a system text and what was said before."""
    if not isinstance(task, CausalLM):
        return False
    return task.layout == MESSAGES or (task.layout == PROMPT and task.chat_template and has_template(base.processor))


def prompt_features(task: Generation, base: BaseModel, messages: Sequence[Message]) -> Features:
    """The prompt that a chat ends with, as the task's `prompt_inputs` takes it.

    A prompt alone is put exactly as a row of the training data, prefix and separator included.

    Args:
        task: one that writes.
        base: its base model.
        messages: what was said so far; more than one only where `takes_chats`.

    Raises:
        UsageError: the template rejects the chat, or the prompt cannot be used.
    """
    # A command line or a program may hand over halves of characters, which no tokenizer takes.
    messages = [{name: _whole(part) for name, part in message.items()} for message in messages]
    if isinstance(task, CausalLM) and (task.layout == MESSAGES or len(messages) > 1):
        if task.layout != MESSAGES:
            messages = [_with_prefix(message, task.source_prefix) for message in messages]
            task = dataclasses.replace(task, layout=MESSAGES)
        rows = Dataset.from_dict({"prompt": [list(messages)]})
    else:
        (message,) = messages
        rows = Dataset.from_dict({"prompt": [message["content"]]})
    try:
        return task.prompts(base, rows, Columns("prompt"))
    except UsageError as error:
        error.respell(lambda line: line.removeprefix("row 1: "))
        raise


def _whole(part: Any) -> Any:
    return whole_characters(part) if isinstance(part, str) else part


def _with_prefix(message: Message, prefix: str) -> Message:
    return {**message, "content": prefix + message["content"]} if message["role"] == USER else message
