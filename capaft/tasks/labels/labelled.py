"""Labels of a task whose problem is one of the kinds of label: their counts, their spelling, the names of scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING

from capaft.tasks.base.columns import Columns
from capaft.tasks.labels.problem import Problem
from capaft.tasks.labels.spelling import label_finder

if TYPE_CHECKING:
    from datasets import Dataset


class Labelled(ABC):
    """Base of such tasks, beside `Task`.

    Attributes:
        labels: class names, in the order of the model's outputs.
        normalise_labels: labels that differ only in their spelling are one.
    """

    labels: tuple[str, ...]
    normalise_labels: bool

    @property
    @abstractmethod
    def _problem(self) -> Problem:
        """The kind of label."""

    def label_counts(self, rows: Dataset, columns: Columns) -> Mapping[str, int]:
        """See `Task.label_counts`."""
        return self._problem.counts(rows, columns)

    def class_of_label(self, label: str) -> str | None:
        """See `Task.class_of_label`."""
        return label_finder(self.labels, normalise=self.normalise_labels)(label)

    def score_name(self, score: str) -> str:
        """See `Task.score_name`."""
        return self._problem.score_name(score)
