"""Labels that are numbers: squared error, and the correlations by which GLUE scores STS-B."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from capaft.support.errors import UsageError
from capaft.tasks.base.columns import Columns, cell_kind, list_columns
from capaft.tasks.labels.problem import Problem, label_values, missing_label

if TYPE_CHECKING:
    from datasets import Dataset


class Regression(Problem):
    """Targets are numbers, `(examples,)`."""

    problem_type = "regression"
    metrics = ("pearson", "spearman", "pearson_spearman", "mse", "mae")

    def classes(self, rows: Dataset, columns: Columns) -> tuple[str, ...]:
        """No classes."""
        return ()

    def encode(self, rows: Dataset, columns: Columns, labels: Sequence[str]) -> NDArray[np.float32]:
        """The number of each row, `(rows,)`."""
        if cell_kind(rows.features[columns.label]) not in ("float", "integer"):
            raise UsageError(
                f"--problem regression: column {columns.label!r} does not hold one number per row; "
                f"choose one with --label-column among {list_columns(rows)}"
            )
        values = label_values(rows, columns)
        for row, value in enumerate(values):
            if value is None or not math.isfinite(value):
                raise missing_label(rows, columns, row)
        return np.array(values, dtype=np.float32)

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
