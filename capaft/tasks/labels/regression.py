"""Labels that are numbers: squared error, and the correlations by which GLUE scores STS-B."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from capaft.support.errors import UsageError
from capaft.tasks.base.columns import Columns, cell_kind, column_values, describe_row, list_columns
from capaft.tasks.labels.numbers import plain_number
from capaft.tasks.labels.problem import Problem, label_values, missing_label

if TYPE_CHECKING:
    from datasets import Dataset

_LARGEST = float(np.finfo(np.float32).max)


class Regression(Problem):
    """Targets are numbers, `(examples,)`."""

    problem_type = "regression"
    metrics = ("pearson", "spearman", "pearson_spearman", "mse", "mae")

    def classes(self, rows: Dataset, columns: Columns) -> tuple[str, ...]:
        """No classes."""
        return ()

    def faults(self, rows: Dataset, columns: Columns) -> dict[int, str]:
        """See `Problem.faults`: labels that are no numbers, or none that a float32 holds.

        Raises:
            UsageError: the column does not hold numbers.
        """
        values = column_values(rows, str(columns.label))
        faults = {row: fault for row, value in enumerate(values) if (fault := _fault(value))}
        if not self._may_hold_numbers(rows, columns) or (len(faults) == len(values) and not any(map(_digits, values))):
            raise self._no_numbers(rows, columns)
        return faults

    def encode(self, rows: Dataset, columns: Columns, labels: Sequence[str]) -> NDArray[np.float32]:
        """The number of each row, `(rows,)`, which a text may write."""
        if not self._may_hold_numbers(rows, columns):
            raise self._no_numbers(rows, columns)
        values = label_values(rows, columns)
        for row, value in enumerate(values):
            if value is None or value != value:
                raise missing_label(rows, columns, row)
            if fault := _fault(value):
                raise UsageError(f"{describe_row(rows, columns, row)}: {fault}; correct it or drop the row")
        return np.array([float(value) for value in values], dtype=np.float32)

    def _may_hold_numbers(self, rows: Dataset, columns: Columns) -> bool:
        return cell_kind(rows.features[columns.label]) in ("float", "integer", "text")

    def _no_numbers(self, rows: Dataset, columns: Columns) -> UsageError:
        return UsageError(
            f"--problem regression: column {columns.label!r} does not hold one number per row; "
            f"choose one with --label-column among {list_columns(rows)}"
        )

    def loss(self, logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        """Squared error; there are no classes to smooth over."""
        return F.mse_loss(logits.squeeze(-1), targets, reduction="sum")

    def predicted(self, logits: NDArray[Any]) -> NDArray[Any]:
        """The only output."""
        return logits[:, 0]

    def scores(self, truth: NDArray[Any], predicted: NDArray[Any], outputs: int) -> dict[str, float]:
        """Correlations and errors; a correlation with constant values is undefined and reported as 0."""
        from scipy.stats import pearsonr, spearmanr
        from sklearn.metrics import mean_absolute_error, mean_squared_error

        varies = len(truth) > 1 and np.ptp(truth) > 0 and np.ptp(predicted) > 0
        pearson = float(pearsonr(truth, predicted).statistic) if varies else 0.0
        spearman = float(spearmanr(truth, predicted).statistic) if varies else 0.0
        return {
            "pearson": pearson,
            "spearman": spearman,
            "pearson_spearman": (pearson + spearman) / 2,
            "mse": float(mean_squared_error(truth, predicted)),
            "mae": float(mean_absolute_error(truth, predicted)),
        }

    def named(self, target: Any, labels: Sequence[str]) -> float:
        """The number."""
        return float(target)


def _fault(value: Any) -> str:
    """The reason why a label is not a number to learn; empty if it is one."""
    number = plain_number(value) if isinstance(value, str) else value
    if number is None:
        return f"the label {value!r} is not a number such as 1250, 0.5 or 1e-3"
    return "" if not number or abs(number) <= _LARGEST else f"the label {value!r} is not a finite float32"


def _digits(value: Any) -> bool:
    return not isinstance(value, str) or any(character.isdigit() for character in value)
