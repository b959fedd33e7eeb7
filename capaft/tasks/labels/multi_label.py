"""Any number of classes at once: each applies or not, by binary cross-entropy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from capaft.support.errors import UsageError
from capaft.tasks.base.columns import Columns, cell_kind, column_values, describe_row, filled_rows
from capaft.tasks.base.task_answers import Record
from capaft.tasks.labels.problem import (
    MAX_CLASSES,
    Problem,
    class_positions,
    label_values,
    likeliest,
    missing_label,
    unknown_label,
)
from capaft.tasks.labels.spelling import label_finder, merged_labels

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class MultiLabel(Problem):
    """Targets are 1 where a class applies, `(examples, classes)`.

    Attributes:
        separator: text between the labels where a row has them in one text; empty if they are lists.
        normalise: labels that differ only in their spelling are one class.
        missing: labels within one text that stand for a missing value.
    """

    problem_type = "multi_label_classification"
    metrics = ("f1", "f1_macro", "accuracy")

    separator: str = ""
    normalise: bool = False
    missing: frozenset[str] = frozenset()

    def classes(self, rows: Dataset, columns: Columns) -> tuple[str, ...]:
        """Class names: a `ClassLabel`, columns and vectors keep their order; integers ascend, words are sorted.

        Raises:
            UsageError: a row has no label, not even an empty list, or there are not from two to `MAX_CLASSES` classes.
        """
        labels = self._classes(rows, columns)
        if not 2 <= len(labels) <= MAX_CLASSES:
            problem = f"column {columns.label!r} has {len(labels)} different labels"
            raise UsageError(f"{problem}; --problem multi needs 2 to {MAX_CLASSES}, in lists")
        return labels

    def _classes(self, rows: Dataset, columns: Columns) -> tuple[str, ...]:
        if columns.choices:
            return columns.choices
        feature = rows.features[columns.label]
        inner = getattr(feature, "feature", None)
        if isinstance(inner, datasets.ClassLabel):
            return tuple(inner.names)
        label_sets = _present(rows, columns, label_values(rows, columns))
        if _are_vectors(feature, label_sets, None):
            return tuple(str(position) for position in range(len(label_sets[0])))
        counts = self.counts(rows, columns)
        names = set(merged_labels(counts).values()) if self.normalise else set(counts)
        return tuple(sorted(names, key=int if cell_kind(inner) == "integer" else None))

    def counts(self, rows: Dataset, columns: Columns) -> Counter[str]:
        """See `Problem.counts`."""
        return Counter(name for names in self._names(rows, columns, None) for name in names)

    def labelled(self, rows: Dataset, columns: Columns) -> NDArray[np.bool_]:
        """See `Problem.labelled`; an empty list means that no class applies, a list with a gap is no label."""
        if columns.choices:
            return filled_rows(rows, *columns.choices)
        inner = getattr(rows.features[columns.label], "feature", None)
        classes = len(inner.names) if isinstance(inner, datasets.ClassLabel) else None

        def is_label(name: Any) -> bool:
            return name not in (None, "") and (classes is None or 0 <= name < classes)

        def is_complete(value: Any) -> bool:
            if isinstance(value, str) and self.separator:
                return self.missing.isdisjoint(map(str.strip, value.split(self.separator)))
            return value is not None and (not isinstance(value, list) or all(map(is_label, value)))

        return np.array(list(map(is_complete, column_values(rows, str(columns.label)))), dtype=np.bool_)

    def encode(self, rows: Dataset, columns: Columns, labels: Sequence[str]) -> NDArray[np.float32]:
        """1 where a class applies to a row, `(rows, classes)`."""
        feature = rows.features.get(columns.label)
        index = class_positions(labels, integers=cell_kind(getattr(feature, "feature", None)) == "integer")
        find = cache(label_finder(tuple(index), normalise=self.normalise))
        targets = np.zeros((len(rows), len(labels)), dtype=np.float32)
        for row, names in enumerate(self._names(rows, columns, len(labels))):
            for name in names:
                label = find(name)
                if label is None:
                    raise unknown_label(rows, columns, row, name, labels)
                targets[row, index[label]] = 1
        return targets

    def _names(self, rows: Dataset, columns: Columns, classes: int | None) -> list[list[str]]:
        """The names of each row's classes, whatever the column's type; `classes` is their number, if known."""
        if columns.choices:
            return _flagged(rows, columns)
        feature = rows.features[columns.label]
        if cell_kind(feature) == "text" and self.separator:
            return [
                [name.strip() for name in text.split(self.separator) if name.strip()]
                for text in _present(rows, columns, label_values(rows, columns))
            ]
        if cell_kind(feature) != "list":
            raise UsageError(
                f"--problem multi: column {columns.label!r} holds one value per row; give lists, "
                "or set --label-separator to the text between labels"
            )
        label_sets = _present(rows, columns, label_values(rows, columns))
        if _are_vectors(feature, label_sets, classes):
            return [[str(position) for position, applies in enumerate(vector) if applies] for vector in label_sets]
        return _listed(rows, columns, label_sets)

    def loss(self, logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        """Binary cross-entropy, summed over the classes; smoothing moves 0 and 1 towards a half."""
        smooth = targets * (1 - smoothing) + smoothing / 2
        return F.binary_cross_entropy_with_logits(logits, smooth, reduction="sum")

    def predicted(self, logits: NDArray[Any]) -> NDArray[Any]:
        """The classes that are more likely than not."""
        return (logits > 0).astype(np.float32)

    def scores(self, truth: NDArray[Any], predicted: NDArray[Any], outputs: int) -> dict[str, float]:
        """F1 over all decisions, its unweighted mean over classes, and the share of examples that are fully right."""
        from sklearn.metrics import accuracy_score, f1_score

        return {
            "f1": float(f1_score(truth, predicted, average="micro", zero_division=0)),
            "f1_macro": float(f1_score(truth, predicted, average="macro", zero_division=0)),
            "accuracy": float(accuracy_score(truth, predicted)),
        }

    def score_name(self, score: str) -> str:
        """See `Task.score_name`."""
        return {"f1": "micro F1", "f1_macro": "macro F1"}.get(score, score)

    def answer_fields(self, top: int | None) -> tuple[str, ...]:
        """The classes that apply, and their probabilities, or those of the `top` likeliest classes."""
        return ("labels", "probabilities")

    def _answered(self, logits: NDArray[np.float64], labels: Sequence[str], top: int | None) -> Record:
        probabilities = np.exp(-np.logaddexp(0, -logits))
        applying = self.named(self.predicted(logits), labels)
        return {
            "labels": applying,
            "probabilities": likeliest(probabilities, labels, len(applying) if top is None else top),
        }

    def named(self, target: Any, labels: Sequence[str]) -> list[str]:
        """The classes that apply."""
        return [labels[position] for position in np.flatnonzero(target).tolist()]


def _present(rows: Dataset, columns: Columns, values: Sequence[Any]) -> Sequence[Any]:
    """The labels, after checking that none is missing; an empty list or text is a label."""
    if None in values:
        raise missing_label(rows, columns, values.index(None))
    return values


def _are_vectors(feature: Any, label_sets: Sequence[Any], classes: int | None) -> bool:
    """True if the lists hold a 0 or 1 for each class rather than class numbers.

    Class numbers are mistaken for that only if there are two classes and every row has both.
    """
    if cell_kind(feature) != "list" or cell_kind(feature.feature) not in ("integer", "float", "bool"):
        return False
    length = classes or len(label_sets[0])
    return length > 1 and all(len(labels) == length and set(labels) <= {0, 1} for labels in label_sets)


def _listed(rows: Dataset, columns: Columns, label_sets: Sequence[list[Any]]) -> list[list[str]]:
    """The class names in lists of names or of class numbers."""
    inner = rows.features[columns.label].feature
    kind = cell_kind(inner)
    # Without any label, a column of lists has no inner type.
    if kind not in ("text", "class", "integer") and any(label_sets):
        raise UsageError(
            f"column {columns.label!r}: lists of labels must hold names, class numbers, or a 0 or 1 for each class"
        )
    for row, labels in enumerate(label_sets):
        if any(label in (None, "") or (kind == "class" and not 0 <= label < len(inner.names)) for label in labels):
            raise missing_label(rows, columns, row)
        if kind == "integer" and len(set(labels)) < len(labels):
            raise UsageError(
                f"{describe_row(rows, columns, row)}: a label occurs twice in {labels}; for a 0 or 1 for each class, "
                "every row needs one for all classes"
            )
    return [[inner.names[label] if kind == "class" else str(label) for label in labels] for labels in label_sets]


def _flagged(rows: Dataset, columns: Columns) -> list[list[str]]:
    """The names of the columns that hold 1, for each row."""
    names: list[list[str]] = [[] for _ in range(len(rows))]
    for name in columns.choices:
        for row, value in enumerate(column_values(rows, name)):
            if value not in (0, 1):
                problem = f"{describe_row(rows, columns, row)}: column {name!r} holds {value!r}"
                raise UsageError(f"{problem}; a column for each label must hold 0 or 1")
            if value:
                names[row].append(name)
    return names
