"""One class of several: cross-entropy, accuracy, top-5 accuracy, F1 and Matthews correlation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from capaft.support.errors import UsageError
from capaft.tasks.base.columns import Columns, cell_kind, column_values, describe_row, is_text, list_columns
from capaft.tasks.labels.problem import (
    MAX_CLASSES,
    Problem,
    class_positions,
    label_values,
    missing_label,
    unknown_label,
)

if TYPE_CHECKING:
    from datasets import Dataset


# ImageNet's challenge counts a class among the five likeliest as right (Russakovsky et al. 2015).
_TOP = 5


class SingleLabel(Problem):
    """Targets are the indices of classes, `(examples,)`."""

    problem_type = "single_label_classification"
    metrics = ("accuracy", "f1", "matthews", "top5")

    def classes(self, rows: Dataset, columns: Columns) -> tuple[str, ...]:
        """Names of the classes: a `ClassLabel` keeps its order, integers and whole floats ascend, others sort as text.

        Raises:
            UsageError: a row has no label, or the column does not hold from two to `MAX_CLASSES` classes, fewer
                than there are rows.
        """
        names = _names(rows, columns)
        present = set(names)
        if len(present) == 1:
            raise UsageError(
                f"every label in column {columns.label!r} is {names[0]!r}; give rows of two classes or more"
            )
        feature = rows.features[columns.label]
        if isinstance(feature, datasets.ClassLabel):
            return tuple(feature.names)
        if len(present) > MAX_CLASSES or len(present) == len(names):
            raise UsageError(
                f"column {columns.label!r} has {len(present)} different values in {len(names)} rows and does not "
                f"look like a label; choose one with --label-column among {list_columns(rows)}"
            )
        return tuple(sorted(present, key=int if cell_kind(feature) in ("integer", "float") else None))

    def labelled(self, rows: Dataset, columns: Columns) -> NDArray[np.bool_]:
        """See `Problem.labelled`; an empty text is not a class."""
        labelled = super().labelled(rows, columns)
        if is_text(rows.features[columns.label]):
            labelled &= np.array(column_values(rows, str(columns.label)), dtype=object) != ""
        return labelled

    def encode(self, rows: Dataset, columns: Columns, labels: Sequence[str]) -> NDArray[np.int64]:
        """The index of each row's class, `(rows,)`."""
        names = _names(rows, columns)
        index = class_positions(labels, integers=cell_kind(rows.features[columns.label]) == "integer")
        for row, name in enumerate(names):
            if name not in index:
                raise unknown_label(rows, columns, row, name, labels)
        return np.array([index[name] for name in names], dtype=np.int64)

    def loss(self, logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        """Cross-entropy."""
        return F.cross_entropy(logits, targets, label_smoothing=smoothing, reduction="sum")

    def predicted(self, logits: NDArray[Any]) -> NDArray[Any]:
        """The class of the largest logit."""
        return logits.argmax(-1)

    def scores(self, truth: NDArray[Any], predicted: NDArray[Any], outputs: int) -> dict[str, float]:
        """Accuracy, Matthews correlation, and F1: of class 1 if there are two (as for MRPC), else the macro mean."""
        from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

        average = "binary" if outputs == 2 else "macro"
        return {
            "accuracy": float(accuracy_score(truth, predicted)),
            "f1": float(f1_score(truth, predicted, average=average, zero_division=0)),
            "matthews": float(matthews_corrcoef(truth, predicted)),
        }

    def ranking(self, truth: NDArray[Any], logits: NDArray[Any]) -> dict[str, float]:
        """`top5`, the share of examples whose class is among the five likeliest; only with more than five classes."""
        from sklearn.metrics import top_k_accuracy_score

        outputs = logits.shape[1]
        if outputs <= _TOP:
            return {}
        return {"top5": float(top_k_accuracy_score(truth, logits, k=_TOP, labels=np.arange(outputs)))}

    def named(self, target: Any, labels: Sequence[str]) -> str:
        """The class."""
        return labels[int(target)]


def check_metric(metric: str, labels: Sequence[str]) -> None:
    """Check that a metric can distinguish adapters.

    Raises:
        UsageError: the metric is `top5` and there are at most five classes.
    """
    if metric == "top5" and len(labels) <= _TOP:
        raise UsageError(f"--metric top5 is always 1 with {len(labels)} classes; choose accuracy or f1")


def _names(rows: Dataset, columns: Columns) -> list[str]:
    """The name of each row's class, whatever the column's type."""
    feature = rows.features[columns.label]
    kind = cell_kind(feature)
    if kind in ("list", "other"):
        raise UsageError(f"column {columns.label!r} does not hold one label per row; for lists, set --problem multi")
    names = []
    for row, value in enumerate(label_values(rows, columns)):
        # NaN is the value that differs from itself.
        if value in (None, "") or value != value or (kind == "class" and not 0 <= value < len(feature.names)):
            raise missing_label(rows, columns, row)
        if kind == "float" and value % 1 != 0:
            raise UsageError(
                f"{describe_row(rows, columns, row)}: the label {value} is a fraction, not a class; "
                "use --problem regression, or choose a column of classes with --label-column"
            )
        names.append(feature.names[value] if kind == "class" else str(int(value) if kind == "float" else value))
    return names
