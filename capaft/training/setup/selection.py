"""The rows that a task trains on and those it is scored on: their split, their columns, and those left out.

Rows that lack an input or a target, and the few with a fault, are left out here, once and for every task. Each
decision about the data is reported in a line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from capaft.config.parts.data import DataSettings
from capaft.config.train_config import TrainConfig
from capaft.data.demo import demo_examples
from capaft.data.load import Say, Splits, choose_splits, load_data
from capaft.data.sampling import hold_out
from capaft.data.splits import VALIDATION, WantedSplits
from capaft.support.errors import UsageError
from capaft.support.faults import leave_out
from capaft.tasks.base.columns import Columns, list_columns, row_numbers, with_row_numbers
from capaft.tasks.base.missing import BLANK, spellings, with_nulls
from capaft.tasks.base.task import Task
from capaft.tasks.language.generation import Generation

if TYPE_CHECKING:
    from datasets import Dataset

DEMO = "demo"
_TEST = "test"


@dataclass(frozen=True)
class Selection:
    """Rows that a task can use, and their columns."""

    rows: Dataset
    columns: Columns


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


def load_splits(settings: DataSettings, say: Say) -> Splits:
    """Load the configured data set, or the embedded one.

    Raises:
        UsageError: it cannot be read.
    """
    names = WantedSplits(settings.train_split, settings.eval_split)
    if settings.data is None or (settings.data == DEMO and not Path(DEMO).exists()):
        return choose_splits(demo_examples(), names)
    return load_data(settings.data, names, say=say, strict=settings.strict)


def select_for_training(
    kind: type[Task], source: Splits, config: TrainConfig, say: Say, task: Task | None = None
) -> RunSelections:
    """Select the training rows and the validation rows, which are set aside if the source has no split for them.

    Args:
        kind: the kind of task.
        source: the data set.
        config: the settings.
        say: called with a line for each decision.
        task: the task, if it was decided before.

    Raises:
        UsageError: the columns cannot be determined, no row is left, or the rows decide no task.
    """
    assert source.train is not None
    named = given_columns(config)
    columns = kind.recognise(source.train, named)
    train = _usable(kind, source.train, columns, config, "training rows", say)
    task = task or kind.decide(train.rows, columns, config, config.data or "")
    # Few validation rows would decide differently.
    config = with_task_options(config, task)
    if source.evaluation is not None:
        hints = _ColumnHints(
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
                say(f"validation is the split {source.name}, {len(validation.rows)} rows")
            return RunSelections(train, validation, task)
    classes = task.classes_of(train.rows, columns)
    kept, aside = hold_out(config.data or DEMO, train.rows, config.validation_split, config.seed, classes)
    say(f"there is no validation split; {len(aside)} of {len(train.rows)} training rows are set aside")
    return RunSelections(Selection(kept, columns), Selection(aside, columns), task, held_out=True)


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
    hints = _ColumnHints(task.find_columns, expected, named, inputs=(expected["text"], expected["pair"]))
    if source.train is not None:
        hints = replace(hints, expects_labels=_has_labels(source.train, hints))
    if source.evaluation is not None:
        is_requested = is_requested or source.train is None
        selection = _select_evaluation(kind, source, hints, config, say, is_requested=is_requested)
        if selection is not None:
            say(f"scored on the split {source.name}")
            return _described(selection, hints, say)
    assert source.train is not None
    columns = hints.recognise(source.train)
    return _described(_usable(kind, source.train, columns, config, "rows", say), hints, say)


def _described(selection: Selection, hints: _ColumnHints, say: Say) -> Selection:
    """A selection, after a line about its columns unless they are known to be those of the training rows."""
    if (selection.columns.text, selection.columns.pair) != hints.inputs:
        say(selection.columns.describe())
    return selection


def given_columns(settings: DataSettings) -> dict[str, str | None]:
    """The columns that the settings name, by role."""
    return {"text": settings.text_column, "pair": settings.pair_column, "label": settings.label_column}


def column_settings(kind: type[Task], columns: Columns) -> dict[str, str | None]:
    """The settings that name these columns, by role.

    For generation there is none for the label: one split may have a target, and another references, which take
    precedence.
    """
    if issubclass(kind, Generation):
        return {"text": columns.text, "pair": columns.pair}
    return {"text": columns.text, "pair": columns.pair, "label": columns.label or ",".join(columns.choices) or None}


def present_columns(rows: Dataset, named: Mapping[str, str | None]) -> dict[str, str | None]:
    """The named columns, or fields within one, that a split has, by role; None for those it has not."""
    present = {*rows.column_names, *(name.rpartition(".")[2] for name in rows.flatten().column_names)}

    def is_present(name: str | None) -> bool:
        # Labels that have a column each are named in one list.
        return name in present or (name is not None and present >= {part.strip() for part in name.split(",")})

    columns = {role: name if is_present(name) else None for role, name in named.items()}
    # Half of a pair would be mistaken for a single text.
    return columns | {"text": None} if named.get("pair") and not columns["pair"] else columns


def with_task_options(config: TrainConfig, task: Task) -> TrainConfig:
    """The configuration with the task's options as its settings of the same names."""
    settings = {field.name for field in fields(config)}
    options = [field.name for field in fields(task) if field.name in settings]
    return replace(config, **{name: getattr(task, name) for name in options})


@dataclass(frozen=True)
class _ColumnHints:
    """Hints for recognising the columns of a split, which may have too few rows to show them.

    Attributes:
        find: finds the columns of a split, given those that are named, by role.
        expected: columns of the training rows, by role; the split may have others.
        named: columns that the user names, by role, which override the expected ones.
        inputs: the input columns of the training rows, of which the split must have as many; None for one that they
            lack.
        expects_labels: True if the training rows have labels.
    """

    find: Callable[[Dataset, Mapping[str, str | None]], Columns]
    expected: Mapping[str, str | None]
    named: Mapping[str, str | None]
    inputs: tuple[str | None, str | None]
    expects_labels: bool = False

    def recognise(self, rows: Dataset) -> Columns:
        """The columns of a split: the expected ones if it has them and they fit, else any that fit.

        Raises:
            UsageError: the columns cannot be determined, or there are fewer inputs than in the training rows.
        """
        named = {role: name for role, name in self.named.items() if name is not None}
        try:
            columns = self.find(rows, present_columns(rows, self.expected) | named)
        except UsageError:
            columns = self.find(rows, named)
        first, second = self.inputs
        if second is not None and columns.pair is None:
            raise UsageError(
                f"the training data had two inputs, {first!r} and {second!r}, and these rows only {columns.text!r}; "
                f"name the second with --pair-column among {list_columns(rows)}"
            )
        return columns


def _has_labels(rows: Dataset, hints: _ColumnHints) -> bool:
    """True if the rows have a column of labels that can be determined."""
    try:
        return hints.recognise(rows).label is not None
    except UsageError:
        return False


def _select_evaluation(
    kind: type[Task], source: Splits, hints: _ColumnHints, config: TrainConfig, say: Say, *, is_requested: bool
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
        return _usable(kind, source.evaluation, columns, config, "validation rows", say)
    except UsageError as error:
        if not may_skip:
            raise
        say(f"the test split is skipped: {error}")
        return None


def _usable(
    kind: type[Task], rows: Dataset, columns: Columns, config: TrainConfig, description: str, say: Say
) -> Selection:
    """The rows that have an input and a target, and no fault.

    Raises:
        UsageError: there are none, many have a fault, or one is left out and `--strict` is set.
    """
    missing = kind.missing_texts(rows, columns, config)
    filled = with_nulls(rows, missing)
    usable = kind.usable(filled, columns, config)
    # The second part of a prompt may be missing.
    pair = None if issubclass(kind, Generation) else columns.pair
    labels = (columns.label,) if columns.label else columns.choices
    names = [name for name in (columns.text, pair, *labels) if name is not None]
    needed = {name: missing.get(name, BLANK.union(config.missing_values)) for name in names}
    spelt = spellings(rows.select(np.flatnonzero(~usable)), needed)
    written = f" ({spelt})" if spelt else ""
    if len(rows) and not usable.any():
        raise UsageError(
            f"none of the {len(rows)} {description} has a value in {' and '.join(map(repr, names))}{written} (withheld "
            "labels are -1); choose other columns with --text-column and --label-column, or other rows"
        )
    if not usable.all():
        lost = int((~usable).sum())
        line = f"{lost} of {len(rows)} {description} have no value in {' or '.join(map(repr, names))}{written}"
        if config.strict:
            raise UsageError(f"{line}; fill them in, or drop --strict to leave them out")
        say(f"{line} and are left out{'; --missing-values says what is missing' if _is_word(spelt) else ''}")
    # Messages name rows by their numbers in the file.
    kept = with_row_numbers(filled).select(np.flatnonzero(usable))
    return Selection(_without_faults(kind, kept, columns, config, description, say), columns)


def _is_word(spelt: str) -> bool:
    """True if spellings of missing values have one that may be a value, and not only blanks."""
    return bool(spelt.replace("blank", ""))


def _without_faults(
    kind: type[Task], rows: Dataset, columns: Columns, config: TrainConfig, description: str, say: Say
) -> Dataset:
    """The rows that have no fault, of rows that have values.

    Raises:
        UsageError: many have a fault, or one has and `--strict` is set.
    """
    faults = kind.faults(rows, columns, config)
    if not faults:
        return rows
    numbers = row_numbers(rows)
    named = [f"row {numbers[at]}: {faults[at]}" for at in sorted(faults)]
    leave_out(named, len(rows), description, strict=config.strict, say=say)
    return rows.select([at for at in range(len(rows)) if at not in faults])
