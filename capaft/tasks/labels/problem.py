"""Kinds of labels - one class, any number of classes, or a number - with their loss and scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from capaft.data.lazy import ColumnValues
from capaft.support.errors import UsageError, did_you_mean
from capaft.tasks.base.columns import Columns, cell_kind, describe_row, filled_rows
from capaft.tasks.base.task_answers import ERROR, Record

if TYPE_CHECKING:
    from datasets import Dataset

MAX_CLASSES = 1000


class Problem(ABC):
    """Reads, learns and scores one kind of label. `outputs` below is the number of classes, or 1 for a number."""

    problem_type: ClassVar[str]
    """Its name in a transformers model configuration."""
    metrics: ClassVar[tuple[str, ...]]
    """Names of its scores, the default first."""

    @abstractmethod
    def classes(self, rows: Dataset, columns: Columns) -> tuple[str, ...]:
        """The names of the classes, in the order of their indices.

        Raises:
            UsageError: a row has no label, or the column does not hold this kind of label.
        """

    def labelled(self, rows: Dataset, columns: Columns) -> NDArray[np.bool_]:
        """True for rows with a label, `(rows,)`; false for all if every label is -1, as in withheld test sets."""
        assert columns.label is not None
        if cell_kind(rows.features[columns.label]) in ("integer", "float") and set(rows.unique(columns.label)) == {-1}:
            return np.zeros(len(rows), dtype=np.bool_)
        return filled_rows(rows, columns.label)

    def faults(self, rows: Dataset, columns: Columns) -> Mapping[int, str]:
        """The rows whose label is wrong, by position, each with what is wrong; none by default."""
        return {}

    def counts(self, rows: Dataset, columns: Columns) -> Mapping[str, int]:
        """Number of rows with each label, as the data spells it; none by default."""
        return {}

    @abstractmethod
    def encode(self, rows: Dataset, columns: Columns, labels: Sequence[str]) -> NDArray[Any]:
        """The targets, `(rows, ...)`.

        Classes are matched by name, whatever order or type they have in this split.

        Raises:
            UsageError: a row has no label, or one that is not among `labels`.
        """

    @abstractmethod
    def loss(self, logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        """The sum of the loss over the examples.

        Args:
            logits: `(examples, outputs)`, float32.
            targets: `(examples, ...)`.
            smoothing: share of the target that is spread over all classes.
        """

    @abstractmethod
    def predicted(self, logits: NDArray[Any]) -> NDArray[Any]:
        """Convert logits `(examples, outputs)` to targets `(examples, ...)`."""

    @abstractmethod
    def scores(self, truth: NDArray[Any], predicted: NDArray[Any], outputs: int) -> dict[str, float]:
        """All scores except those of `ranking`, by the names in `metrics`."""

    def ranking(self, truth: NDArray[Any], logits: NDArray[Any]) -> dict[str, float]:
        """Scores that need the logits, by the names in `metrics`; none by default."""
        return {}

    def score_name(self, score: str) -> str:
        """See `Task.score_name`."""
        return score

    @abstractmethod
    def answer_fields(self, top: int | None) -> tuple[str, ...]:
        """See `TaskAnswers.answer_fields`."""

    def answer(self, logits: NDArray[Any], labels: Sequence[str], top: int | None) -> Record:
        """What is predicted for one example, or an error if the model's output is not finite.

        Args:
            logits: those of the example, `(outputs,)`.
            labels: names of the classes.
            top: number of the likeliest classes that are listed; None if nobody asked for them.
        """
        if not np.isfinite(logits).all():
            return {ERROR: "the model's output is not finite"}
        return self._answered(logits.astype(np.float64), labels, top)

    @abstractmethod
    def _answered(self, logits: NDArray[np.float64], labels: Sequence[str], top: int | None) -> Record:
        """See `answer`."""

    @abstractmethod
    def named(self, target: Any, labels: Sequence[str]) -> Any:
        """One example's target in readable form."""


def rounded(number: Any) -> float:
    """A number with the digits that a float32 has."""
    return float(f"{float(number):.7g}")


def likeliest(probabilities: NDArray[np.float64], labels: Sequence[str], number: int) -> dict[str, float]:
    """The likeliest classes with their probabilities, in descending order; of two alike the first."""
    order = np.argsort(-probabilities, kind="stable")[:number]
    return {labels[at]: rounded(probabilities[at]) for at in order.tolist()}


def label_values(rows: Dataset, columns: Columns) -> Sequence[Any]:
    """The values of the label column.

    Raises:
        UsageError: every label is -1.
    """
    assert columns.label is not None
    values = ColumnValues(rows, columns.label)
    # Lists are never -1.
    if values and all(value == -1 for value in values):
        raise UsageError(f"every label in column {columns.label!r} is -1, which marks rows whose label is withheld")
    return values


def class_positions(labels: Sequence[str], integers: bool) -> dict[str, int]:
    """Position of each class by name; integer labels are positions if no class name is an integer."""
    if integers and not any(label.removeprefix("-").isdecimal() for label in labels):
        return {str(position): position for position in range(len(labels))}
    return {label: position for position, label in enumerate(labels)}


def missing_label(rows: Dataset, columns: Columns, row: int) -> UsageError:
    """The error for a row without a label."""
    where = f"{describe_row(rows, columns, row)}: no label in column {columns.label!r}"
    return UsageError(f"{where}; fill it in or drop the row")


def unknown_label(rows: Dataset, columns: Columns, row: int, name: str, labels: Sequence[str]) -> UsageError:
    """The error for a row whose label does not occur in the training data."""
    listed = ", ".join(labels[:10]) + (", ..." if len(labels) > 10 else "")
    return UsageError(
        f"{describe_row(rows, columns, row)}: the training data has no label {name!r}; "
        f"its labels are {listed}{did_you_mean(name, labels)}"
    )
