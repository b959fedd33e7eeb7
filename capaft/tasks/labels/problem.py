"""What a label is - one class, any number of classes, or a number - and all that follows from it but the model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from capaft.support.errors import UsageError, did_you_mean
from capaft.tasks.base.columns import Columns, cell_kind, column_values, describe_row, filled_rows

if TYPE_CHECKING:
    from datasets import Dataset

MAX_CLASSES = 1000


class Problem(ABC):
    """How labels are read, learnt and scored. `outputs` below is the classes' number, or 1 for a number."""

    problem_type: ClassVar[str]
    """What transformers calls it in a model's configuration."""
    metrics: ClassVar[tuple[str, ...]]
    """Names of its scores, the default first."""

    @abstractmethod
    def classes(self, rows: Dataset, columns: Columns) -> tuple[str, ...]:
        """The names of the classes, in the order of their indices.

        Raises:
            UsageError: a row has no label, or the column is no such label.
        """

    def labelled(self, rows: Dataset, columns: Columns) -> NDArray[np.bool_]:
        """Which rows have a label, `(rows,)`: none if all labels are -1, as where they are withheld."""
        assert columns.label is not None
        if cell_kind(rows.features[columns.label]) in ("integer", "float") and set(rows.unique(columns.label)) == {-1}:
            return np.zeros(len(rows), dtype=np.bool_)
        return filled_rows(rows, columns.label)

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
        """The targets, `(examples, ...)`, that logits `(examples, outputs)` stand for."""

    @abstractmethod
    def scores(self, truth: NDArray[Any], predicted: NDArray[Any], outputs: int) -> dict[str, float]:
        """All scores but those of `ranking`, by the names in `metrics`."""

    def ranking(self, truth: NDArray[Any], logits: NDArray[Any]) -> dict[str, float]:
        """Scores, by the names in `metrics`, that more than the predicted targets tell; none by default."""
        return {}

    @abstractmethod
    def named(self, target: Any, labels: Sequence[str]) -> Any:
        """One example's target, as a person reads it."""


def label_values(rows: Dataset, columns: Columns) -> list[Any]:
    """The column of the label.

    Raises:
        UsageError: it does not hold labels but -1.
    """
    assert columns.label is not None
    found = column_values(rows, columns.label)
    # True for lists too, which are never -1.
    if found and all(value == -1 for value in found):
        raise UsageError(f"every label in column {columns.label!r} is -1, which marks rows whose label is withheld")
    return found


def class_positions(labels: Sequence[str], integers: bool) -> dict[str, int]:
    """Where each class stands, by name; integers are positions where no class has an integer for its name."""
    if integers and not any(label.removeprefix("-").isdecimal() for label in labels):
        return {str(position): position for position in range(len(labels))}
    return {label: position for position, label in enumerate(labels)}


def missing_label(rows: Dataset, columns: Columns, row: int) -> UsageError:
    """What to say of a row without a label."""
    where = f"{describe_row(rows, columns, row)}: no label in column {columns.label!r}"
    return UsageError(f"{where}; fill it in or drop the row")


def unknown_label(rows: Dataset, columns: Columns, row: int, name: str, labels: Sequence[str]) -> UsageError:
    """What to say of a row with a label that the training data lack."""
    known = ", ".join(labels[:10]) + (", ..." if len(labels) > 10 else "")
    return UsageError(
        f"{describe_row(rows, columns, row)}: the training data has no label {name!r}; "
        f"its labels are {known}{did_you_mean(name, labels)}"
    )
