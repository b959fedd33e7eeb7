"""The examples of a run: rows sampled as the user asks, and prepared as the model takes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from capaft.config.train_config import TrainConfig
from capaft.data.sampling import sample_rows, sample_shots
from capaft.model.load import BaseModel
from capaft.support.errors import UsageError
from capaft.tasks.base.features import Features
from capaft.tasks.base.task import Task
from capaft.training.setup.selection import Selection
from capaft.training.setup.task_choice import TaskChoice

if TYPE_CHECKING:
    from datasets import Dataset


def make_examples(
    choice: TaskChoice, base: BaseModel, config: TrainConfig, say: Callable[[str], None]
) -> tuple[Features, Features]:
    """Prepare the training and the validation examples.

    Args:
        choice: the task and its rows.
        base: the base model, for its processor and configuration.
        config: the resolved settings.
        say: called with a line for each decision about the data.

    Raises:
        UsageError: a value cannot be used; names the row.
    """
    task = choice.task
    train_rows = _sampled(choice.train, task, config, say)
    validation_rows = choice.validation.rows
    if config.max_eval_examples and config.max_eval_examples < len(validation_rows):
        validation_rows = sample_rows(validation_rows, config.max_eval_examples, config.seed)
    train = task.features(base, train_rows, choice.train.columns, training=True)
    validation = task.features(base, validation_rows, choice.validation.columns, training=False)
    _describe(choice, train, validation, config.data or "the demo", say)
    return train, validation


def _sampled(selection: Selection, task: Task, config: TrainConfig, say: Callable[[str], None]) -> Dataset:
    """The training rows, sampled to the requested number of each class and in all."""
    rows = selection.rows
    if config.shots:
        classes = task.classes_of(rows, selection.columns)
        if classes is None:
            raise UsageError(
                f"--shots has no effect with this {task.name}, whose rows have no class each; use --max-train-examples"
            )
        rows = sample_shots(rows, classes, config.shots, config.seed)
        counts = Counter(classes)
        scarce = [f"{label} ({counts[at]})" for at, label in enumerate(task.labels) if counts[at] < config.shots]
        if scarce:
            more = f" and {len(scarce) - 10} more" if len(scarce) > 10 else ""
            say(f"data   some classes have fewer than {config.shots} training rows: {', '.join(scarce[:10])}{more}")
    if config.max_train_examples and config.max_train_examples < len(rows):
        rows = sample_rows(rows, config.max_train_examples, config.seed)
    return rows


def _describe(
    choice: TaskChoice, train: Features, validation: Features, source: str, say: Callable[[str], None]
) -> None:
    """Say how many examples there are, what they are read from, and what was lost."""
    pieces = ""
    if (train.examples, validation.examples) != (len(train), len(validation)):
        pieces = f", in {len(train)} and {len(validation)} pieces"
    say(f"data   {source}: {train.examples} training and {validation.examples} validation examples{pieces}")
    classes = f"; {len(choice.task.labels)} classes" if choice.task.labels else ""
    say(f"       {choice.train.columns.describe()}{classes}")
    if train.left_out:
        say(f"       {train.left_out}")
    if truncated := train.truncated + validation.truncated:
        say(f"       {truncated} examples are too long and are cut ({choice.task.cut_by})")
