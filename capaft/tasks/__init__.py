"""The tasks: one file each, with its columns, features, batches, loss and scores."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from capaft.tasks.task import Task

# By the name that `--task` takes: the module and the class. Loaded when asked for, each with the libraries it needs.
_CLASSES = {
    "text-classification": "TextClassification",
    "token-classification": "TokenClassification",
    "question-answering": "QuestionAnswering",
    "multiple-choice": "MultipleChoice",
    "causal-lm": "CausalLM",
    "seq2seq": "Seq2Seq",
    "masked-lm": "MaskedLM",
    "image-classification": "ImageClassification",
    "audio-classification": "AudioClassification",
}
TASKS = tuple(_CLASSES)


def task_class(name: str) -> type[Task]:
    """The class of a task by its name.

    Raises:
        KeyError: there is none of that name.
    """
    module = import_module(f"capaft.tasks.{name.replace('-', '_')}")
    found: type[Task] = getattr(module, _CLASSES[name])
    return found
