"""The rows of a task: which data are its own, their columns, what is left out of them, and their labels.

All of it is decided by the data alone, before a model is loaded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from capaft.config.parts.task import TaskSettings
from capaft.support.errors import UsageError
from capaft.tasks.base.columns import Columns, filled_rows
from capaft.tasks.base.missing import BLANK

if TYPE_CHECKING:
    from datasets import Dataset

    from capaft.tasks.base.evidence import Evidence


class TaskRows(ABC):
    """Base of `Task`: how a task reads rows.

    Attributes:
        labels: class names, in the order of the model's outputs; empty where there are no classes.
    """

    labels: tuple[str, ...]

    @classmethod
    def is_certain(cls, rows: Dataset, evidence: Evidence) -> bool:
        """True if the type of a column, or a setting, leaves no doubt that rows are for this task; False by default."""
        return False

    @classmethod
    def claims(cls, rows: Dataset, evidence: Evidence) -> bool:
        """True if rows look like this task's, where no task is certain of them; by default only `--task` chooses it.

        Raises:
            UsageError: the rows may well be for this task, but its columns cannot be determined. The user reads this
                if no other task claims the rows.
        """
        return False

    @classmethod  # noqa: B027 - most tasks are claimed by columns that leave no doubt
    def doubt(cls, rows: Dataset, evidence: Evidence) -> None:
        """Make sure that rows which the task claims do not look like something else; by default they do not.

        Raises:
            UsageError: they do; the message says how to settle it.
        """

    @classmethod
    def has_columns(cls, rows: Dataset, evidence: Evidence) -> bool:
        """True if the task finds its columns, and they are those that the user named."""
        try:
            return evidence.agrees_with(cls.recognise(rows, evidence.named))
        except UsageError:
            return False

    @classmethod
    @abstractmethod
    def recognise(cls, rows: Dataset, named: Mapping[str, str | None]) -> Columns:
        """Find the columns of a split.

        Args:
            rows: the split.
            named: the columns that the user named, by role: `text`, `pair`, `label`.

        Raises:
            UsageError: a named column is missing, or another one cannot be determined.
        """

    def find_columns(self, rows: Dataset, named: Mapping[str, str | None]) -> Columns:
        """Find the columns of a split to score, which may lack a target; by default as `recognise` does.

        Raises:
            UsageError: as `recognise`.
        """
        return self.recognise(rows, named)

    @classmethod
    def missing_texts(cls, rows: Dataset, columns: Columns, settings: TaskSettings) -> dict[str, frozenset[str]]:
        """The texts that stand for a missing value, by column: in input and target a blank one and the user's.

        They are null in the rows that every other method is called with.

        Args:
            rows: the split.
            columns: its columns.
            settings: those of the task.
        """
        names = (columns.text, columns.pair, columns.label)
        return {name: BLANK.union(settings.missing_values) for name in names if name is not None}

    @classmethod
    def usable(cls, rows: Dataset, columns: Columns, settings: TaskSettings) -> NDArray[np.bool_]:
        """Mask of the rows that have an input and a target, `(rows,)`: no others are trained on or scored.

        The others are left out before anything is decided by them, so that no other code meets a missing value.

        Args:
            rows: the split.
            columns: its columns.
            settings: those of the task.
        """
        return filled_rows(rows, columns.text, columns.label)

    @classmethod
    def faults(cls, rows: Dataset, columns: Columns, settings: TaskSettings) -> Mapping[int, str]:
        """The usable rows whose values are wrong, by position, each with what is wrong; none by default.

        A few such rows are left out and named; many show that the data is not what it seems, and are refused.

        Args:
            rows: rows without a missing value, as `usable` has them.
            columns: their columns.
            settings: those of the task.
        """
        return {}

    @classmethod
    def classes(cls, rows: Dataset, columns: Columns) -> tuple[str, ...]:
        """Names of the classes in the training rows; none by default."""
        return ()

    def check_labels(self, rows: Dataset, columns: Columns) -> None:
        """Make sure that rows have no labels but the task's, before a model is loaded for minutes.

        Raises:
            UsageError: a row has another label; names the first.
        """
        self.classes_of(rows, columns)

    def classes_of(self, rows: Dataset, columns: Columns) -> Sequence[int] | None:
        """The class of each row, `(rows,)`; None where a row has no class, or several.

        Raises:
            UsageError: a row has no label, or one that the task does not have.
        """
        return None

    def label_counts(self, rows: Dataset, columns: Columns) -> Mapping[str, int]:
        """Number of occurrences of each label as the data spells it; none by default."""
        return {}

    def class_of_label(self, label: str) -> str | None:
        """The class that a label in the data means; None if it is none."""
        return label if label in self.labels else None
