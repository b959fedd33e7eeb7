"""The rows of a split that a task can use: not those that lack an input or a target, nor the few with a fault."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from capaft.config.train_config import TrainConfig
from capaft.data.load import Say
from capaft.support.counting import agreeing
from capaft.support.errors import UsageError
from capaft.support.faults import leave_out
from capaft.tasks.base.columns import Columns, MissingLabelsError, filled_rows, row_numbers, with_row_numbers
from capaft.tasks.base.missing import spellings, with_nulls
from capaft.tasks.base.task import Task
from capaft.tasks.language.generation import Generation

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Selection:
    """Rows that a task can use, and their columns."""

    rows: Dataset
    columns: Columns


def usable_rows(
    kind: type[Task], rows: Dataset, columns: Columns, config: TrainConfig, description: str, say: Say
) -> Selection:
    """The rows that have an input and a target, and no fault.

    Args:
        kind: the kind of task.
        rows: the split.
        columns: its columns.
        config: the settings.
        description: of the rows, for messages, such as "training rows".
        say: called with a line for each decision.

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
    needed = {name: missing[name] for name in names if name in missing}
    spelt = spellings(rows.select(np.flatnonzero(~usable)), needed)
    written = f" ({spelt})" if spelt else ""
    if len(rows) and not usable.any():
        kind_of_error = MissingLabelsError if labels and filled_rows(filled, columns.text).any() else UsageError
        raise kind_of_error(
            f"none of the {len(rows)} {description} has a value in {' and '.join(map(repr, names))}{written} (withheld "
            "labels are -1); choose other columns with --text-column and --label-column, or other rows"
        )
    if not usable.all():
        lost = int((~usable).sum())
        has, are, them = agreeing(lost, "has", "have"), agreeing(lost, "is", "are"), agreeing(lost, "it", "them")
        line = f"{lost} of {len(rows)} {description} {has} no value in {' or '.join(map(repr, names))}{written}"
        if config.strict:
            raise UsageError(f"{line}; fill {them} in, or drop --strict to leave {them} out")
        say(f"{line} and {are} left out{'; --missing-values says what is missing' if _is_word(spelt) else ''}")
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
