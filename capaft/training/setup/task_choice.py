"""The task of a run, with its labels, and the rows that it trains on and is scored on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from capaft.config.train_config import TrainConfig
from capaft.data.load import Splits
from capaft.model.load import load_configuration
from capaft.tasks.base.recognise import recognise_task
from capaft.tasks.base.registry import task_class
from capaft.tasks.base.task import Task
from capaft.training.setup.class_report import class_lines
from capaft.training.setup.column_hints import given_columns
from capaft.training.setup.predecessor import Predecessor
from capaft.training.setup.selection import select_for_training
from capaft.training.setup.usable_rows import Selection


@dataclass(frozen=True)
class TaskChoice:
    """A task and its rows.

    Attributes:
        task: the task, with its labels.
        train: the training rows and their columns.
        validation: the validation rows and their columns.
        held_out: True if the validation rows were set aside from the training rows.
    """

    task: Task
    train: Selection
    validation: Selection
    held_out: bool = False


def choose_task(
    config: TrainConfig, splits: Splits, say: Callable[[str], None], predecessor: Predecessor | None = None
) -> TaskChoice:
    """Choose the task, the user's or the one that data and model suggest, and the rows for it.

    Args:
        config: the resolved settings.
        splits: the data set.
        say: called with a line for each decision worth reading.
        predecessor: the adapter that the run carries on.

    Raises:
        UsageError: no task fits, its columns cannot be determined, or a label is wrong.
    """
    assert splits.train is not None
    model_config = load_configuration(config)
    name = config.task
    if name == "auto":
        classify = config.problem != "auto" or bool(config.label_separator)
        name = recognise_task(splits.train, model_config, given_columns(config), classify=classify)
    origin = "" if config.task == name else ", inferred from the data and the model (--task overrides)"
    say(f"task   {name}{origin}")
    kind = task_class(name)
    kind.check_model(model_config)
    selections = select_for_training(kind, splits, config, lambda line: say(f"data   {line}"), before=predecessor)
    train, validation, task, held_out = selections
    # A wrong label is reported before minutes of loading.
    task.check_labels(validation.rows, validation.columns)
    classes = task.classes_of(validation.rows, validation.columns)
    for line in class_lines(task, task.label_counts(train.rows, train.columns), classes):
        say(f"data   {line}")
    return TaskChoice(task, train, validation, held_out)
