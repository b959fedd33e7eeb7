"""The rows that a task trains on and those it is scored on: their split and their columns.

Each decision about the data is reported in a line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from capaft.config.local_paths import PASSED
from capaft.config.parts.data import DataSettings
from capaft.config.train_config import TrainConfig
from capaft.data.demo import demo_examples
from capaft.data.load import Say, Splits, choose_splits, load_data, training_splits
from capaft.data.sampling import hold_out
from capaft.data.splits import VALIDATION, WantedSplits, split_role
from capaft.support.counting import agreeing, counted
from capaft.support.errors import UsageError
from capaft.tasks.base.columns import Columns, is_text, plain_name
from capaft.tasks.base.task import Task
from capaft.tasks.language.generation import Generation
from capaft.training.setup.column_hints import ColumnHints, column_settings, given_columns, present_columns
from capaft.training.setup.predecessor import Predecessor
from capaft.training.setup.usable_rows import Selection, usable_rows

if TYPE_CHECKING:
    from datasets import Dataset

    pass

DEMO = "demo"
_TEST = "test"


class RunSelections(NamedTuple):
    """The rows of a run.

    Attributes:
        train: the training rows.
        validation: the validation rows.
        task: the task that the training rows decide; where validation rows were set aside, all rows do, since a scarce
            label may then be in either part.
        held_out: True if the validation rows were set aside from the training rows.
    """

    train: Selection
    validation: Selection
    task: Task
    held_out: bool = False


def load_splits(settings: DataSettings, say: Say, rows: Mapping[str, Dataset] | None = None) -> Splits:
    """Load the configured data set, or the embedded one.

    Args:
        settings: the data set and its splits.
        say: called with a line for each decision.
        rows: the data set, by the names of its splits, if a program hands it over.

    Raises:
        UsageError: it cannot be read.
    """
    names = WantedSplits(settings.train_split, settings.eval_split)
    if settings.data is None or (settings.data == DEMO and not Path(DEMO).exists()):
        return choose_splits(demo_examples(), names)
    if rows is not None:
        return training_splits(settings.data, rows, names)
    if settings.data == PASSED:
        raise UsageError("the rows of this run were passed in Python; name the data with --data")
    return load_data(settings.data, names, say=say, strict=settings.strict)


def select_for_training(
    kind: type[Task],
    source: Splits,
    config: TrainConfig,
    say: Say,
    task: Task | None = None,
    before: Predecessor | None = None,
) -> RunSelections:
    """Select the training rows and the validation rows, which are set aside if the source has no split for them.

    Args:
        kind: the kind of task.
        source: the data set.
        config: the settings.
        say: called with a line for each decision.
        task: the task, if it was decided before.
        before: the adapter that the run carries on, if any.

    Raises:
        UsageError: the columns cannot be determined, no row is left, or the rows decide no task.
    """
    assert source.train is not None
    named = given_columns(config)
    columns = _training_columns(kind, source.train, named, before)
    train = usable_rows(kind, source.train, columns, config, "training rows", say)
    task = task or kind.decide(train.rows, columns, config, config.data or "")
    task = before.labelled(task, train.rows, columns) if before else task
    # Few validation rows would decide differently.
    config = with_task_options(config, task)
    if source.evaluation is not None:
        hints = ColumnHints(
            find=kind.recognise,
            expected=column_settings(kind, columns),
            named=present_columns(source.evaluation, named),
            inputs=(columns.text, columns.pair),
            expects_labels=columns.label is not None,
        )
        is_requested = config.eval_split is not None
        validation = _select_evaluation(kind, source, hints, config, say, is_requested=is_requested)
        if validation is not None:
            if source.name != VALIDATION:
                say(f"validation is the split {source.name}, {counted(len(validation.rows), 'row')}")
            return RunSelections(train, validation, task)
    if names := _split_names(source.train):
        say(f"{names}: all rows are read as training rows; give each split a file of its own to keep them apart")
    classes = task.classes_of(train.rows, columns)
    kept, aside = hold_out(config.data or DEMO, train.rows, config.validation_split, config.seed, classes)
    are = agreeing(len(aside), "is", "are")
    say(f"there is no validation split; {len(aside)} of {len(train.rows)} training rows {are} set aside")
    return RunSelections(Selection(kept, columns), Selection(aside, columns), task, held_out=True)


def _training_columns(
    kind: type[Task], rows: Dataset, named: Mapping[str, str | None], before: Predecessor | None
) -> Columns:
    """The columns of the training rows: those that the adapter which is carried on was trained on, if rows have them.

    Raises:
        UsageError: they cannot be determined.
    """
    if before is None or before.config is None or not before.does(kind):
        return kind.recognise(rows, named)
    return ColumnHints(kind.recognise, given_columns(before.config), named, inputs=(None, None)).recognise(rows)


def select_for_scoring(
    task: Task,
    source: Splits,
    config: TrainConfig,
    named: Mapping[str, str | None],
    say: Say,
    *,
    is_requested: bool,
) -> Selection:
    """Select the rows to score a trained task on: the evaluation split, or else the training rows.

    Args:
        task: the trained task.
        source: the data set.
        config: the run's settings, whose columns are used where the rows have them.
        named: the columns that the user names, by role.
        say: called with a line for each decision.
        is_requested: True if the user asks for that split.

    Raises:
        UsageError: the columns cannot be determined, or no row is left.
    """
    kind = type(task)
    # A class of the task that is called "NA" is one here too.
    missing = tuple(text for text in config.missing_values if text not in task.labels)
    config = replace(with_task_options(config, task), missing_values=missing)
    expected = given_columns(config)
    hints = ColumnHints(task.find_columns, expected, named, inputs=(expected["text"], expected["pair"]))
    writes = issubclass(kind, Generation)
    if source.train is not None:
        hints = hints.expect_labels(source.train)
    if source.evaluation is not None:
        is_requested = is_requested or source.train is None
        selection = _select_evaluation(kind, source, hints, config, say, is_requested=is_requested)
        if selection is not None:
            say(f"scored on the split {source.name}")
            return _described(selection, hints, say, writes=writes)
    assert source.train is not None
    columns = hints.recognise(source.train)
    return _described(usable_rows(kind, source.train, columns, config, "rows", say), hints, say, writes=writes)


def _described(selection: Selection, hints: ColumnHints, say: Say, *, writes: bool) -> Selection:
    """A selection, after a line about its columns unless they are known to be those of the training rows.

    Raises:
        UsageError: there are two inputs, and the training rows had one; those of a prompt are one text.
    """
    first, second = hints.inputs
    if first is not None and second is None and selection.columns.pair is not None and not writes:
        raise UsageError(
            f"the training data had one input, {first!r}, and these rows would be read as two, "
            f"{selection.columns.text!r} and {selection.columns.pair!r}; name the one with --text-column"
        )
    if (selection.columns.text, selection.columns.pair) != hints.inputs:
        say(selection.columns.describe())
    return selection


def with_task_options(config: TrainConfig, task: Task) -> TrainConfig:
    """The configuration with the task's options as its settings of the same names."""
    settings = {field.name for field in fields(config)}
    options = [field.name for field in fields(task) if field.name in settings]
    return replace(config, **{name: getattr(task, name) for name in options})


def _select_evaluation(
    kind: type[Task], source: Splits, hints: ColumnHints, config: TrainConfig, say: Say, *, is_requested: bool
) -> Selection | None:
    """Select the rows of the evaluation split; None if it is a test split without labels that was not requested.

    Raises:
        UsageError: the columns cannot be determined, or no row is left.
    """
    assert source.evaluation is not None
    # Published test splits often withhold their labels, so one that was found by its name alone may be skipped.
    may_skip = source.name == _TEST and not is_requested
    try:
        columns = hints.recognise(source.evaluation)
        if may_skip and hints.expects_labels and columns.label is None:
            raise UsageError("it has no labels")
        return usable_rows(kind, source.evaluation, columns, config, "validation rows", say)
    except UsageError as error:
        if not may_skip:
            raise
        say(f"the test split is skipped: {error}")
        return None


def _split_names(rows: Dataset) -> str:
    """A column of names of splits, with its values, for a message; empty if there is none."""
    for name, feature in rows.features.items():
        if is_text(feature) and plain_name(name) in ("split", "subset", "set", "partition"):
            values = [str(value) for value in rows.unique(name) if value]
            if len(values) > 1 and all(map(split_role, values)):
                return f"column {name!r} names splits ({', '.join(sorted(values))})"
    return ""
