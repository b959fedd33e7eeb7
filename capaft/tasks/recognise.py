"""Which task a data set and a model are for: the first whose columns are there, from the most telling on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import datasets

from capaft.columns import find
from capaft.errors import UsageError
from capaft.tasks import task_class
from capaft.tasks.answers import holds_answers
from capaft.tasks.chat import is_chat

if TYPE_CHECKING:
    from datasets import Dataset

# Columns of which each says what the rows are for.
_TELLING = ("token-classification", "multiple-choice", "text-classification")


def recognise(rows: Dataset, config: Any, given: Mapping[str, str | None]) -> str:
    """The name of the task that rows and a model are for.

    Args:
        rows: the training split.
        config: the model's configuration, as transformers has it.
        given: the columns that the user named, by role.

    Raises:
        UsageError: the columns are those of no task.
    """
    known = {*rows.column_names, *(name.rpartition(".")[2] for name in rows.flatten().column_names)}
    for role, name in given.items():
        if name is not None and not set(name.split(",")) & known:
            find(rows, role, name, (), lambda feature: True, "")  # No such column: it says so.
    features = list(rows.features.values())
    if any(isinstance(feature, datasets.Image) for feature in features):
        return "image-classification"
    if any(isinstance(feature, datasets.Audio) for feature in features):
        return "audio-classification"
    if any(map(holds_answers, features)):
        return "question-answering"
    generates = "seq2seq" if getattr(config, "is_encoder_decoder", False) else "causal-lm"
    if any(map(is_chat, features)):
        return generates
    problem = None
    models = "masked-lm" if generates == "causal-lm" and _is_masked(config) else generates
    # Texts and their targets suit models that generate; a text alone suits what the model was made for.
    for name in (*_TELLING, generates, models):
        try:
            found = task_class(name).recognise(rows, given)
        except UsageError as error:
            problem = error if name == "text-classification" else problem
        else:
            if name != "text-classification" or _has_classes(rows, found.label):
                return models if name == "causal-lm" and found.label is None else name
    raise UsageError(f"{problem}; or say what to train for with --task")


def check_model(task: str, config: Any) -> None:
    """Make sure that a model which is to write has not seen what it will write.

    Raises:
        UsageError: it looks at both sides of every token, so that its perplexity would say nothing.
    """
    if task == "causal-lm" and _is_masked(config):
        raise UsageError(
            f"causal-lm needs a model that reads from left to right, and {config.model_type} reads both ways; choose "
            "another --model, or --task masked-lm for plain text"
        )


def _has_classes(rows: Dataset, label: str | None) -> bool:
    """Whether a column that should come out holds classes or numbers, and not a text of each row's own."""
    if label is None or rows.features[label] != datasets.Value("string"):
        return True
    return len(rows.unique(label)) <= len(rows) // 2


def _is_masked(config: Any) -> bool:
    """Whether a model predicts masked tokens: it was made for that, or its type can and is no decoder."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    made_for = " ".join(getattr(config, "architectures", None) or ())
    if "CausalLM" in made_for or "LMHead" in made_for:
        return False
    known = getattr(config, "model_type", "") in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return "MaskedLM" in made_for or (known and not getattr(config, "is_decoder", False))
