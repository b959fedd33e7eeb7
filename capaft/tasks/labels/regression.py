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
from capaft.tasks.base.task_answers import Record
from capaft.tasks.labels.numbers import is_number, plain_number
from capaft.tasks.labels.problem import Problem, label_values, missing_label, rounded

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
        values = _values(rows, columns, column_values(rows, str(columns.label)))
        return {row: fault for row, value in enumerate(values) if (fault := _fault(value))}

    def encode(self, rows: Dataset, columns: Columns, labels: Sequence[str]) -> NDArray[np.float32]:
        """The number of each row, `(rows,)`, which a text may write."""
        values = _values(rows, columns, label_values(rows, columns))
        for row, value in enumerate(values):
            if value is None or value != value:
                raise missing_label(rows, columns, row)
            if fault := _fault(value):
                raise UsageError(f"{describe_row(rows, columns, row)}: {fault}; correct it or drop the row")
        return np.array([float(value) for value in values], dtype=np.float32)

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

    def answer_fields(self, top: int | None) -> tuple[str, ...]:
        """The number."""
        return ("value",)

    def _answered(self, logits: NDArray[np.float64], labels: Sequence[str], top: int | None) -> Record:
        return {"value": rounded(logits[0])}

    def named(self, target: Any, labels: Sequence[str]) -> float:
        """The number."""
        return float(target)


def _fault(value: Any) -> str:
    """The reason why a label is not a number to learn; empty if it is one."""
    number = plain_number(value) if isinstance(value, str) else value
    if number is None:
        return f"the label {value!r} is not a number such as 1250.5"
    return "" if not number or abs(number) <= _LARGEST else f"the label {value!r} is not a finite float32"


def _values(rows: Dataset, columns: Columns, values: Sequence[Any]) -> Sequence[Any]:
    """The values, after checking that their column may hold numbers: if they are texts, one of them is a number."""
    kind = cell_kind(rows.features[columns.label])
    texts = [value for value in values if kind == "text" and value is not None]
    if kind not in ("float", "integer", "text") or (texts and not any(map(is_number, texts))):
        raise UsageError(
            f"--problem regression: column {columns.label!r} does not hold one number per row; "
            f"choose one with --label-column among {list_columns(rows)}"
        )
    return values
