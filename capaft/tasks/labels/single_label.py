"""One class of several: cross-entropy, accuracy, top-5 accuracy, F1 and Matthews correlation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from capaft.data.lazy import ColumnValues
from capaft.support.errors import UsageError, did_you_mean
from capaft.tasks.base.columns import Columns, cell_kind, describe_row, is_text, list_columns
from capaft.tasks.base.task_answers import Record
from capaft.tasks.labels.numbers import whole_number
from capaft.tasks.labels.problem import (
    MAX_CLASSES,
    Problem,
    class_positions,
    label_values,
    likeliest,
    missing_label,
    rounded,
    unknown_label,
)
from capaft.tasks.labels.spelling import label_finder, merged_labels

if TYPE_CHECKING:
    from datasets import Dataset


# ImageNet's challenge counts a class among the five likeliest as right (Russakovsky et al. 2015).
_TOP = 5
_OF_POSITIVE = ("f1", "precision", "recall")
_INF = float("inf")


@dataclass(frozen=True)
class SingleLabel(Problem):
    """Targets are the indices of classes, `(examples,)`.

    Attributes:
        normalise: labels that differ only in their spelling are one class.
        positive_label: the class whose F1, precision and recall are scored; without one F1 is the macro mean.
    """

    problem_type = "single_label_classification"
    metrics = ("accuracy", "f1", "matthews", "top5", "precision", "recall")

    normalise: bool = False
    positive_label: str = ""

    def classes(self, rows: Dataset, columns: Columns) -> tuple[str, ...]:
        """Names of the classes: a `ClassLabel` keeps its order, integers and whole floats ascend, others sort as text.

        Raises:
            UsageError: a row has no label, or the column does not hold from two to `MAX_CLASSES` classes, fewer
                than there are rows.
        """
        counts = self.counts(rows, columns)
        classes = merged_labels(counts) if self.normalise else dict(zip(counts, counts, strict=True))
        present = set(classes.values())
        if len(present) == 1:
            raise UsageError(
                f"every label in column {columns.label!r} is {min(present)!r}; give rows of two classes or more"
            )
        feature = rows.features[columns.label]
        if isinstance(feature, datasets.ClassLabel):
            every = Counter({name: counts[name] for name in feature.names})
            return tuple(dict.fromkeys(merged_labels(every).values())) if self.normalise else tuple(feature.names)
        if len(present) > MAX_CLASSES or len(present) == len(rows):
            raise UsageError(
                f"column {columns.label!r} has {len(present)} different values in {len(rows)} rows and does not "
                f"look like a label; choose one with --label-column among {list_columns(rows)}"
            )
        return tuple(sorted(present, key=int if cell_kind(feature) in ("integer", "float") else None))

    def labelled(self, rows: Dataset, columns: Columns) -> NDArray[np.bool_]:
        """See `Problem.labelled`; an empty text is not a class."""
        labelled = super().labelled(rows, columns)
        if is_text(rows.features[columns.label]):
            values = ColumnValues(rows, str(columns.label))
            labelled &= np.fromiter((value != "" for value in values), dtype=np.bool_, count=len(rows))
        return labelled

    def faults(self, rows: Dataset, columns: Columns) -> dict[int, str]:
        """See `Problem.faults`: infinity is no class."""
        if cell_kind(rows.features[columns.label]) != "float":
            return {}
        values = ColumnValues(rows, str(columns.label))
        return {row: f"the label {value} is not a class" for row, value in enumerate(values) if value in (_INF, -_INF)}

    def counts(self, rows: Dataset, columns: Columns) -> Counter[str]:
        """See `Problem.counts`; whole numbers that texts write are spelt in one way."""
        counts = Counter(_names(rows, columns))
        numbers = {name: whole_number(name) for name in counts}
        plain: Counter[str] = Counter()
        for name, count in counts.items():
            number = numbers[name]
            plain[name if number is None or None in numbers.values() else number] += count
        return plain

    def encode(self, rows: Dataset, columns: Columns, labels: Sequence[str]) -> NDArray[np.int64]:
        """The index of each row's class, `(rows,)`."""
        names = _names(rows, columns)
        index = class_positions(labels, integers=cell_kind(rows.features[columns.label]) == "integer")
        find = label_finder(tuple(index), normalise=self.normalise)
        classes = {name: find(name) for name in dict.fromkeys(names)}
        for row, name in enumerate(names):
            if classes[name] is None:
                raise unknown_label(rows, columns, row, name, labels)
        return np.array([index[str(classes[name])] for name in names], dtype=np.int64)

    def loss(self, logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        """Cross-entropy."""
        return F.cross_entropy(logits, targets, label_smoothing=smoothing, reduction="sum")

    def predicted(self, logits: NDArray[Any]) -> NDArray[Any]:
        """The class of the largest logit."""
        return logits.argmax(-1)

    def scores(self, truth: NDArray[Any], predicted: NDArray[Any], outputs: int) -> dict[str, float]:
        """Accuracy, the mean of F1 over the classes that occur, and Matthews correlation."""
        from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

        return {
            "accuracy": float(accuracy_score(truth, predicted)),
            "f1": float(f1_score(truth, predicted, average="macro", zero_division=0)),
            "matthews": float(matthews_corrcoef(truth, predicted)),
        }

    def positive_scores(self, truth: NDArray[Any], predicted: NDArray[Any], labels: Sequence[str]) -> dict[str, float]:
        """F1, precision and recall of the positive label, if there is one."""
        from sklearn.metrics import precision_recall_fscore_support

        if not self.positive_label:
            return {}
        position = labels.index(self.positive_label)
        of_class = (truth == position, predicted == position)
        precision, recall, f1, _ = precision_recall_fscore_support(*of_class, average="binary", zero_division=0)
        return {"f1": float(f1), "precision": float(precision), "recall": float(recall)}

    def score_name(self, score: str) -> str:
        """See `Task.score_name`."""
        shown = {"f1": "F1"}.get(score, score)
        if self.positive_label and score in _OF_POSITIVE:
            return f"{shown} of {self.positive_label!r}"
        return f"macro {shown}" if score == "f1" else score

    def ranking(self, truth: NDArray[Any], logits: NDArray[Any]) -> dict[str, float]:
        """`top5`, the share of examples whose class is among the five likeliest; only with more than five classes."""
        from sklearn.metrics import top_k_accuracy_score

        outputs = logits.shape[1]
        if outputs <= _TOP:
            return {}
        return {"top5": float(top_k_accuracy_score(truth, logits, k=_TOP, labels=np.arange(outputs)))}

    def answer_fields(self, top: int | None) -> tuple[str, ...]:
        """The class and its probability, and those of the `top` likeliest classes."""
        return ("label", "probability") if top is None else ("label", "probability", "probabilities")

    def _answered(self, logits: NDArray[np.float64], labels: Sequence[str], top: int | None) -> Record:
        shares = np.exp(logits - logits.max())
        shares /= shares.sum()
        best = int(shares.argmax())
        answer = {"label": labels[best], "probability": rounded(shares[best])}
        return answer if top is None else {**answer, "probabilities": likeliest(shares, labels, top)}

    def named(self, target: Any, labels: Sequence[str]) -> str:
        """The class."""
        return labels[int(target)]


def check_scoring(metric: str, labels: Sequence[str], positive_label: str) -> None:
    """Check that a metric can distinguish adapters, and that there is a positive label where one is scored.

    Raises:
        UsageError: the metric is `top5` and there are at most five classes, or it needs a positive label; or that label
            is no class.
    """
    if metric == "top5" and len(labels) <= _TOP:
        raise UsageError(f"--metric top5 is always 1 with {len(labels)} classes; choose accuracy or f1")
    if metric in ("precision", "recall") and not positive_label:
        raise UsageError(f"--metric {metric} needs the label that it is scored for; name it with --positive-label")
    if positive_label and labels and positive_label not in labels:
        listed = ", ".join(labels[:10]) + (", ..." if len(labels) > 10 else "")
        hint = did_you_mean(positive_label, labels)
        raise UsageError(f"--positive-label {positive_label}: there is no such label; the labels are {listed}{hint}")


def _names(rows: Dataset, columns: Columns) -> list[str]:
    """The name of each row's class, whatever the column's type."""
    feature = rows.features[columns.label]
    kind = cell_kind(feature)
    if kind in ("list", "other"):
        raise UsageError(f"column {columns.label!r} does not hold one label per row; for lists, set --problem multi")
    names: list[str] = []
    # One text for each class, and not one for each row.
    named: dict[Any, str] = {}
    for row, value in enumerate(label_values(rows, columns)):
        if value in named:
            names.append(named[value])
            continue
        # NaN is the value that differs from itself.
        if value in (None, "") or value != value or (kind == "class" and not 0 <= value < len(feature.names)):
            raise missing_label(rows, columns, row)
        if kind == "float" and value % 1 != 0:
            raise UsageError(
                f"{describe_row(rows, columns, row)}: the label {value} is a fraction, not a class; "
                "use --problem regression, or choose a column of classes with --label-column"
            )
        named[value] = feature.names[value] if kind == "class" else str(int(value) if kind == "float" else value)
        names.append(named[value])
    return names
