"""The examples of a run: rows sampled as the user asks, and prepared as the model takes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from capaft.config.train_config import TrainConfig
from capaft.data.sampling import sample_rows, sample_shots
from capaft.model.load import BaseModel
from capaft.support.counting import agreeing
from capaft.support.errors import UsageError
from capaft.tasks.base.features import Features
from capaft.tasks.base.token_ids import check_token_ids
from capaft.training.setup.task_choice import TaskChoice

if TYPE_CHECKING:
    from datasets import Dataset


def sample_examples(choice: TaskChoice, config: TrainConfig, say: Callable[[str], None]) -> TaskChoice:
    """The task with as many of its rows as the user wants.

    Args:
        choice: the task and all its rows.
        config: the resolved settings.
        say: called with a line for each decision about the data.

    Raises:
        UsageError: the rows have no classes to sample by.
    """
    train = replace(choice.train, rows=_training_rows(choice, config, say))
    validation = replace(
        choice.validation, rows=_at_most(config.max_eval_examples, choice.validation.rows, config.seed)
    )
    return replace(choice, train=train, validation=validation)


def make_examples(
    choice: TaskChoice, base: BaseModel, source: str, say: Callable[[str], None]
) -> tuple[Features, Features]:
    """Prepare the training and the validation examples.

    Args:
        choice: the task and its rows.
        base: the base model, for its processor and configuration.
        source: the user's name for the data set.
        say: called with a line for each decision about the data.

    Raises:
        UsageError: a value cannot be used; names the row.
    """
    task = choice.task
    train = task.features(base, choice.train.rows, choice.train.columns, training=True)
    validation = task.features(base, choice.validation.rows, choice.validation.columns, training=False)
    for features in (train, validation):
        check_token_ids(base, features)
    _describe(choice, train, validation, source, say)
    return train, validation


def _training_rows(choice: TaskChoice, config: TrainConfig, say: Callable[[str], None]) -> Dataset:
    """The training rows, sampled to the requested number of each class and in all."""
    task, rows = choice.task, choice.train.rows
    if config.shots:
        classes = task.classes_of(rows, choice.train.columns)
        if classes is None:
            raise UsageError(
                f"--shots cannot be used with this {task.name}: its rows have no single class; use --max-train-examples"
            )
        rows = sample_shots(rows, classes, config.shots, config.seed)
        counts = Counter(classes)
        scarce = [f"{label} ({counts[at]})" for at, label in enumerate(task.labels) if counts[at] < config.shots]
        if scarce:
            more = f" and {len(scarce) - 10} more" if len(scarce) > 10 else ""
            say(f"data   some classes have fewer than {config.shots} training rows: {', '.join(scarce[:10])}{more}")
    return _at_most(config.max_train_examples, rows, config.seed)


def _at_most(limit: int | None, rows: Dataset, seed: int) -> Dataset:
    """The rows, or a sample of them if there are more than the limit."""
    return sample_rows(rows, limit, seed) if limit and limit < len(rows) else rows


def _describe(
    choice: TaskChoice, train: Features, validation: Features, source: str, say: Callable[[str], None]
) -> None:
    """Say how many examples there are, what they are read from, and what was lost."""
    pieces = ""
    if (train.examples, validation.examples) != (len(train), len(validation)):
        pieces = f", in {len(train)} and {len(validation)} pieces"
    say(f"data   {source}: {train.examples} training and {validation.examples} validation examples{pieces}")
    say(f"       {choice.train.columns.describe()}")
    for note in train.notes:
        say(f"       {note}")
    if train.left_out:
        say(f"       {train.left_out}")
    if truncated := train.truncated + validation.truncated:
        examples, are = agreeing(truncated, "example", "examples"), agreeing(truncated, "is", "are")
        say(f"       {truncated} {examples} {are} too long and {are} cut ({choice.task.cut_by})")
