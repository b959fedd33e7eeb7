"""The rows that a task trains on and those it is scored on: which split they are of, their columns, what is left out.

Rows that lack what goes in or what should come out are left out here, once and for every task. What capaft decides
about the data is told in lines.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from capaft.config.train_config import TrainConfig
from capaft.data.demo import demo_examples
from capaft.data.load import Say, Splits, choose_splits, load_data
from capaft.data.sampling import hold_out
from capaft.data.splits import VALIDATION, WantedSplits
from capaft.support.errors import UsageError
from capaft.tasks.base.columns import Columns, with_row_numbers
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


def load_splits(config: TrainConfig, say: Say) -> Splits:
    """The configured data set, or the embedded one.

    Raises:
        UsageError: it cannot be read.
    """
    wanted = WantedSplits(config.train_split, config.eval_split)
    if config.data is None or (config.data == DEMO and not Path(DEMO).exists()):
        return choose_splits(demo_examples(), wanted)
    return load_data(config.data, wanted, say=say)


def select_for_training(
    kind: type[Task], source: Splits, config: TrainConfig, say: Say
) -> tuple[Selection, Selection, Selection]:
    """The training rows, the validation rows, and those whose labels are the task's.

    The last are the training rows; or all rows, where the source has no validation split and some are set aside: what
    is scarce may then be in either part.

    Raises:
        UsageError: the columns cannot be told, or no row is left.
    """
    assert source.train is not None
    given = given_columns(config)
    columns = kind.recognise(source.train, given)
    train = _usable(kind, source.train, columns, config, "training rows", say)
    if source.evaluation is not None:
        known = _Known(
            column_settings(kind, columns), present_columns(source.evaluation, given), columns.label is not None
        )
        validation = _scored(kind, source, known, config, say, asked=config.eval_split is not None)
        if validation is not None:
            if source.name != VALIDATION:
                say(f"validation is the split {source.name}, {len(validation.rows)} rows")
            return train, validation, train
    first, second = hold_out(config.data or DEMO, train.rows, config.validation_split, config.seed)
    say(f"there is no validation split; {len(second)} of {len(train.rows)} training rows are set aside")
    return Selection(first, columns), Selection(second, columns), train


def select_for_scoring(
    task: Task,
    source: Splits,
    config: TrainConfig,
    named: Mapping[str, str | None],
    say: Say,
    *,
    asked: bool,
) -> Selection:
    """The rows to score a trained task on: the split that validates, or else the training rows.

    Args:
        task: what was trained.
        source: the data set.
        config: the run's settings, whose columns are taken where the rows have such.
        named: the columns that the user names.
        say: told one line for each decision.
        asked: the user asks for that split.

    Raises:
        UsageError: the columns cannot be told, or no row is left.
    """
    kind = type(task)
    config = with_task_options(config, task)
    usual = given_columns(config)
    known = _Known(usual, named, _has_labels(kind, source.train, usual, named))
    if source.evaluation is not None:
        found = _scored(kind, source, known, config, say, asked=asked or source.train is None)
        if found is not None:
            say(f"scored on the split {source.name}")
            return found
    assert source.train is not None
    return _usable(kind, source.train, _columns(kind, source.train, known), config, "rows", say)


def given_columns(config: TrainConfig) -> dict[str, str | None]:
    """The columns that the user named, by role."""
    return {"text": config.text_column, "pair": config.pair_column, "label": config.label_column}


def column_settings(kind: type[Task], columns: Columns) -> dict[str, str | None]:
    """How a user would name these columns, by role.

    Those of generation are not named: one split may have a target, and another references that go before it.
    """
    if issubclass(kind, Generation):
        return {}
    return {"text": columns.text, "pair": columns.pair, "label": columns.label or ",".join(columns.choices) or None}


def present_columns(rows: Dataset, given: Mapping[str, str | None]) -> dict[str, str | None]:
    """Those of the named columns, or names within one, that a split has: a second one may call some otherwise."""
    known = {*rows.column_names, *(name.rpartition(".")[2] for name in rows.flatten().column_names)}

    def is_there(name: str | None) -> bool:
        # Labels that have a column each are named in one list.
        return name in known or (name is not None and known >= {each.strip() for each in name.split(",")})

    found = {role: name if is_there(name) else None for role, name in given.items()}
    # Half of a pair would be taken for a text of its own.
    return found | {"text": None} if given.get("pair") and not found["pair"] else found


def with_task_options(config: TrainConfig, task: Task) -> TrainConfig:
    """The configuration with the task's fields that are settings of that name."""
    settings = {each.name for each in fields(config)}
    return replace(config, **{each.name: getattr(task, each.name) for each in fields(task) if each.name in settings})


@dataclass(frozen=True)
class _Known:
    """What helps to tell the columns of a split that is scored.

    Attributes:
        usual: names that the training rows have, by role.
        named: names that the user gave, which count for more.
        labelled: the training rows have labels.
    """

    usual: Mapping[str, str | None]
    named: Mapping[str, str | None]
    labelled: bool


def _columns(kind: type[Task], rows: Dataset, known: _Known) -> Columns:
    """The columns that training rows have, if they are there and fit; a few rows alone may not tell them."""
    named = {role: name for role, name in known.named.items() if name is not None}
    try:
        return kind.recognise(rows, present_columns(rows, known.usual) | named)
    except UsageError:
        return kind.recognise(rows, named)


def _has_labels(
    kind: type[Task], rows: Dataset | None, usual: Mapping[str, str | None], named: Mapping[str, str | None]
) -> bool:
    """Whether rows have a column of labels that can be told."""
    try:
        return rows is not None and _columns(kind, rows, _Known(usual, named, False)).label is not None
    except UsageError:
        return False


def _scored(
    kind: type[Task], source: Splits, known: _Known, config: TrainConfig, say: Say, *, asked: bool
) -> Selection | None:
    """The rows of the split that validates; None for a test split that nobody asks for and whose labels are withheld.

    Raises:
        UsageError: the columns cannot be told, or no row is left.
    """
    assert source.evaluation is not None
    try:
        columns = _columns(kind, source.evaluation, known)
        if columns.label is None and known.labelled and source.name == _TEST and not asked:
            raise UsageError("it has no labels")
        return _usable(kind, source.evaluation, columns, config, "validation rows", say)
    except UsageError as error:
        if source.name != _TEST or asked:
            raise
        say(f"the test split is left aside: {error}")
        return None


def _usable(kind: type[Task], rows: Dataset, columns: Columns, config: TrainConfig, what: str, say: Say) -> Selection:
    """The rows without those that lack what goes in or what should come out."""
    usable = kind.usable(rows, columns, config)
    read = [name for name in (columns.text, columns.pair, columns.label) if name is not None]
    if len(rows) and not usable.any():
        raise UsageError(
            f"none of the {len(rows)} {what} has a value in {' and '.join(map(repr, read))} (where labels are "
            "withheld, they are -1); choose other columns with --text-column and --label-column, or other rows"
        )
    if not usable.all():
        lost = int((~usable).sum())
        say(f"{lost} of {len(rows)} {what} have no value in {' or '.join(map(repr, read))} and are left out")
    # Messages name rows by their numbers in the file.
    return Selection(with_row_numbers(rows).select(np.flatnonzero(usable)), columns)
