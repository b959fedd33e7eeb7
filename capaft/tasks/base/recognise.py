"""Which task a data set and a model are for: the first whose columns are there, from the most telling on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import datasets

from capaft.support.errors import UsageError
from capaft.tasks.base.columns import Columns, find_column, is_text, plain_name
from capaft.tasks.base.registry import task_class
from capaft.tasks.language.chat import is_chat
from capaft.tasks.language.text_pairs import recognise_text_pairs
from capaft.tasks.spans.answers import holds_answers

if TYPE_CHECKING:
    from datasets import Dataset

# Columns of which each says what the rows are for.
_TELLING = ("token-classification", "multiple-choice", "text-classification")
# What a column is called that can be nothing but what should come out.
_SURE = ("label", "labels")


def recognise_task(rows: Dataset, config: Any, given: Mapping[str, str | None], *, classify: bool = False) -> str:
    """The name of the task that rows and a model are for.

    Args:
        rows: the training split.
        config: the model's configuration, as transformers has it.
        given: the columns that the user named, by role.
        classify: the user set an option that classifying texts alone has; images and recordings stay what they are.

    Raises:
        UsageError: the columns are those of no task.
    """
    known = {*rows.column_names, *(name.rpartition(".")[2] for name in rows.flatten().column_names)}
    for role, name in given.items():
        if name is not None and not set(name.split(",")) & known:
            find_column(rows, role, name, (), lambda feature: True, "")  # No such column: it says so.
    features = list(rows.features.values())
    if any(isinstance(feature, datasets.Image) for feature in features):
        return "image-classification"
    if any(isinstance(feature, datasets.Audio) for feature in features):
        return "audio-classification"
    if classify:
        return "text-classification"
    if any(map(holds_answers, features)):
        return "question-answering"
    generates = "seq2seq" if getattr(config, "is_encoder_decoder", False) else "causal-lm"
    if any(map(is_chat, features)):
        return generates
    problems = {}
    models = "masked-lm" if generates == "causal-lm" and _is_masked(config) else generates
    # Texts and their targets suit models that generate; a text alone suits what the model was made for.
    for name in (*_TELLING, generates, models):
        if name == "causal-lm" and models == "masked-lm" and given.get("label"):
            continue  # The model cannot write, so that a label can be nothing but classes.
        try:
            found = task_class(name).recognise(rows, given)
        except UsageError as error:
            problems[name] = error
        else:
            classified = name == "text-classification"
            if _is_classified(rows, given, found.label, models) if classified else _reads(found, given):
                return models if name == "causal-lm" and found.label is None else name
    problem = problems.get("text-classification", problems.get(models))
    if problem is None:
        # No task wants the columns that the user named; what is wrong with them as labels, its own checks tell.
        return "text-classification"
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


def _reads(found: Columns, given: Mapping[str, str | None]) -> bool:
    """Whether a task's columns are those that the user named beside the text."""
    return given.get("pair") in (None, found.pair) and given.get("label") in (None, found.label)


def _is_classified(rows: Dataset, given: Mapping[str, str | None], label: str | None, models: str) -> bool:
    """Whether classes are what should come out, and not the target of a usual pair of source and target beside them.

    A model that generates is there for the pair: topics and numbers of tokens are notes on it. To a decoder, which
    often classifies, a column called label is more than a note. To a model that cannot write, a label that the user
    named, or that is called so, holds classes whatever it looks like.
    """
    if models == "masked-lm" and (given.get("label") or plain_name(label or "") in _SURE):
        return True
    if not _has_classes(rows, label):
        return False
    if given.get("label") or models == "masked-lm" or (models == "causal-lm" and plain_name(label or "") in _SURE):
        return True
    try:
        pair = recognise_text_pairs(rows, given)
    except UsageError:
        return True
    if pair is None or pair.label in (None, label):
        return True
    # Targets of few values are classes as well; those of translations are no columns, and of references no texts.
    return is_text(rows.features.get(pair.label)) and _has_classes(rows, pair.label)


def _has_classes(rows: Dataset, label: str | None) -> bool:
    """Whether a column that should come out holds classes or numbers, and not a text of each row's own."""
    if label is None or not is_text(rows.features[label]):
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
