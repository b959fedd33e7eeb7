"""Any number of classes at once: a yes or no for each, by binary cross-entropy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from capaft.support.errors import UsageError
from capaft.tasks.base.columns import Columns, cell_kind, column_values, describe_row, filled_rows
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


@dataclass(frozen=True)
class MultiLabel(Problem):
    """Targets are 1 where a class applies, `(examples, classes)`.

    Attributes:
        separator: what stands between the labels where a row has them in one text; empty if they are lists.
    """

    problem_type = "multi_label_classification"
    metrics = ("f1", "f1_macro", "accuracy")

    separator: str = ""

    def classes(self, rows: Dataset, columns: Columns) -> tuple[str, ...]:
        """A `ClassLabel` keeps its order, and so do columns and places in a vector; integers ascend, words are sorted.

        Raises:
            UsageError: a row has no label at all, not even an empty list, or there are not from two to `MAX_CLASSES`.
        """
        labels = self._classes(rows, columns)
        if not 2 <= len(labels) <= MAX_CLASSES:
            where = f"column {columns.label!r} has {len(labels)} different labels"
            raise UsageError(f"{where}; --problem multi wants from 2 to {MAX_CLASSES}, in lists")
        return labels

    def _classes(self, rows: Dataset, columns: Columns) -> tuple[str, ...]:
        if columns.choices:
            return columns.choices
        held = rows.features[columns.label]
        if isinstance(getattr(held, "feature", None), datasets.ClassLabel):
            return tuple(held.feature.names)
        sets = _present(rows, columns, label_values(rows, columns))
        if _are_vectors(held, sets, None):
            return tuple(str(position) for position in range(len(sets[0])))
        present = {name for names in self._names(rows, columns, None) for name in names}
        integers = cell_kind(getattr(held, "feature", None)) == "integer"
        return tuple(sorted(present, key=int if integers else None))

    def labelled(self, rows: Dataset, columns: Columns) -> NDArray[np.bool_]:
        """See `Problem.labelled`; an empty list says that no class applies, one with a gap says nothing."""
        if columns.choices:
            return filled_rows(rows, *columns.choices)
        inner = getattr(rows.features[columns.label], "feature", None)
        classes = len(inner.names) if isinstance(inner, datasets.ClassLabel) else None

        def is_label(name: Any) -> bool:
            return name not in (None, "") and (classes is None or 0 <= name < classes)

        return np.array(
            [
                each is not None and (not isinstance(each, list) or all(map(is_label, each)))
                for each in column_values(rows, str(columns.label))
            ],
            dtype=np.bool_,
        )

    def encode(self, rows: Dataset, columns: Columns, labels: Sequence[str]) -> NDArray[np.float32]:
        """1 where a class applies to a row, `(rows, classes)`."""
        held = rows.features.get(columns.label)
        index = class_positions(labels, integers=cell_kind(getattr(held, "feature", None)) == "integer")
        targets = np.zeros((len(rows), len(labels)), dtype=np.float32)
        for row, names in enumerate(self._names(rows, columns, len(labels))):
            for name in names:
                if name not in index:
                    raise unknown_label(rows, columns, row, name, labels)
                targets[row, index[name]] = 1
        return targets

    def _names(self, rows: Dataset, columns: Columns, classes: int | None) -> list[list[str]]:
        """The names of each row's classes, whatever type the column has; `classes` is how many there are, if known."""
        if columns.choices:
            return _chosen(rows, columns)
        held = rows.features[columns.label]
        if cell_kind(held) == "text" and self.separator:
            return [
                [name.strip() for name in text.split(self.separator) if name.strip()]
                for text in _present(rows, columns, label_values(rows, columns))
            ]
        if cell_kind(held) != "list":
            raise UsageError(
                f"--problem multi: column {columns.label!r} holds one value a row; give lists, "
                "or say with --label-separator what stands between the labels in a text"
            )
        sets = _present(rows, columns, label_values(rows, columns))
        if _are_vectors(held, sets, classes):
            return [[str(position) for position, applies in enumerate(vector) if applies] for vector in sets]
        return _listed(rows, columns, sets)

    def loss(self, logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        """Binary cross-entropy, summed over the classes of an example; smoothing draws 0 and 1 towards a half."""
        smooth = targets * (1 - smoothing) + smoothing / 2
        return F.binary_cross_entropy_with_logits(logits, smooth, reduction="sum")

    def predicted(self, logits: NDArray[Any]) -> NDArray[Any]:
        """The classes that are more likely than not."""
        return (logits > 0).astype(np.float32)

    def scores(self, truth: NDArray[Any], predicted: NDArray[Any], outputs: int) -> dict[str, float]:
        """F1 over all decisions, its unweighted mean over classes, and the share of examples that are right in full."""
        from sklearn.metrics import accuracy_score, f1_score

        return {
            "f1": float(f1_score(truth, predicted, average="micro", zero_division=0)),
            "f1_macro": float(f1_score(truth, predicted, average="macro", zero_division=0)),
            "accuracy": float(accuracy_score(truth, predicted)),
        }

    def named(self, target: Any, labels: Sequence[str]) -> list[str]:
        """The classes that apply."""
        return [labels[position] for position in np.flatnonzero(target).tolist()]


def _present(rows: Dataset, columns: Columns, found: list[Any]) -> list[Any]:
    """The labels, none of which is missing; an empty list or text is not."""
    if None in found:
        raise missing_label(rows, columns, found.index(None))
    return found


def _are_vectors(feature: Any, sets: list[Any], classes: int | None) -> bool:
    """Whether lists hold a 0 or 1 for each class, and not the numbers of classes.

    Class numbers look like that only where there are two classes and every row has both.
    """
    if cell_kind(feature) != "list" or cell_kind(feature.feature) not in ("integer", "float", "bool"):
        return False
    length = classes or len(sets[0])
    return length > 1 and all(len(each) == length and set(each) <= {0, 1} for each in sets)


def _listed(rows: Dataset, columns: Columns, sets: list[list[Any]]) -> list[list[str]]:
    """The names in lists of names or of class numbers."""
    inner = rows.features[columns.label].feature
    held = cell_kind(inner)
    # The lists of a column without any label have no type.
    if held not in ("text", "class", "integer") and any(sets):
        raise UsageError(f"column {columns.label!r}: lists of labels hold names, class numbers, or a 0 or 1 a class")
    for row, names in enumerate(sets):
        if any(name in (None, "") or (held == "class" and not 0 <= name < len(inner.names)) for name in names):
            raise missing_label(rows, columns, row)
        if held == "integer" and len(set(names)) < len(names):
            raise UsageError(
                f"{describe_row(rows, columns, row)}: a label occurs twice in {names}; if these are a 0 or 1 for each "
                "class, every row has to have them for all classes"
            )
    return [[inner.names[name] if held == "class" else str(name) for name in names] for names in sets]


def _chosen(rows: Dataset, columns: Columns) -> list[list[str]]:
    """The names of the columns that hold 1, for each row."""
    found: list[list[str]] = [[] for _ in range(len(rows))]
    for name in columns.choices:
        for row, value in enumerate(column_values(rows, name)):
            if value not in (0, 1):
                where = f"{describe_row(rows, columns, row)}: column {name!r} holds {value!r}"
                raise UsageError(f"{where}; a column for each label holds 0 or 1")
            if value:
                found[row].append(name)
    return found
