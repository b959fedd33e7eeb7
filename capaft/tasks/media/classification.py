"""One class of several for an image or a recording: all of it but how files become a batch, in which media differ."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from torch import Tensor, nn

from capaft.config.train_config import TrainConfig
from capaft.model.load import BaseModel
from capaft.support.errors import UsageError
from capaft.tasks.base.columns import Columns, ask_for_column, cell_kind, filled_rows, find_column, row_numbers
from capaft.tasks.base.features import Batch, Features
from capaft.tasks.base.task import Task
from capaft.tasks.labels.single_label import SingleLabel, check_metric

if TYPE_CHECKING:
    from datasets import Dataset

_LABELS = (
    ("label", "labels"),
    ("finelabel",),
    ("class", "category", "target", "digit", "genre", "emotion", "intent", "intentclass", "command"),
)


@dataclass(frozen=True)
class MediaClassification(Task):
    """Base of the tasks whose inputs are files, read when a batch is made: together they seldom fit into memory.

    Scores: `accuracy`; `f1`, the unweighted mean over the classes that occur; and with more than five classes `top5`,
    the share of examples whose class is among the five most likely.
    """

    metrics: ClassVar[tuple[str, ...]] = ("accuracy", "f1", "top5")

    medium: ClassVar[str]
    """What goes in, in one word; the usual name of its column."""
    usual_names: ClassVar[tuple[tuple[str, ...], ...]]
    """Names of its column, as `find` takes them."""
    feature_type: ClassVar[type]
    """How `datasets` calls the type of such a column."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_metric(self.metric, self.labels)

    @classmethod
    @abstractmethod
    def fits(cls, feature: Any) -> bool:
        """Whether a column with that `datasets` feature can hold what goes in."""

    @classmethod
    def recognise(cls, rows: Dataset, given: Mapping[str, str | None]) -> Columns:
        """Find the inputs and their labels: by name, else each as the only column of the type made for it.

        Raises:
            UsageError: a given column is not there or not usable, or one that is not given cannot be told.
        """
        if given.get("pair"):
            raise UsageError(f"--pair-column {given['pair']}: {cls.name} takes one {cls.medium} a row; drop it")
        text, label = given.get("text"), given.get("label")
        what = f"{cls.medium} files, their paths or arrays"
        text = find_column(rows, "text", text, cls.usual_names, cls.fits, what, (label,))
        text = text or _only(rows, "text", cls.feature_type)
        label = find_column(rows, "label", label, _LABELS, _is_class, "one class a row", (text,))
        label = label or _only(rows, "label", datasets.ClassLabel)
        return Columns(text, None, label)

    @classmethod
    def classes(cls, rows: Dataset, columns: Columns) -> tuple[str, ...]:
        """See `SingleLabel.classes`."""
        return SingleLabel().classes(rows, columns)

    @classmethod
    def usable(cls, rows: Dataset, columns: Columns, config: TrainConfig) -> NDArray[np.bool_]:
        """See `Task.usable`."""
        return filled_rows(rows, columns.text) & SingleLabel().labelled(rows, columns)

    def classes_of(self, rows: Dataset, columns: Columns) -> Sequence[int]:
        """See `Task.classes_of`."""
        return SingleLabel().encode(rows, columns, self.labels).tolist()

    def features(self, base: BaseModel, rows: Dataset, columns: Columns, *, training: bool) -> Features:
        """The column as it is, and the class of each row as `references`, `(rows,)`.

        Raises:
            UsageError: a row has no input or no label, or a label that is none of the task's.
        """
        rows = rows.with_format(None)
        if isinstance(rows.features[columns.text], self.feature_type):
            rows = rows.cast_column(columns.text, self.feature_type(decode=False))
        return Features(
            inputs={self.medium: rows[columns.text], "row": row_numbers(rows)},
            lengths=np.ones(len(rows), dtype=np.int64),
            references=SingleLabel().encode(rows, columns, self.labels),
            sources=_names(rows, columns.text),
        )

    def loss(self, outputs: Any, targets: Mapping[str, Tensor], smoothing: float) -> Tensor:
        """The sum of the cross-entropy over the batch."""
        return SingleLabel().loss(outputs.logits.float(), targets["labels"], smoothing)

    def predict(
        self, base: BaseModel, model: nn.Module, features: Features, indices: Sequence[int], batch: Batch, outputs: Any
    ) -> list[NDArray[np.float32]]:
        """The logits, `(classes,)`."""
        return list(outputs.logits.float().cpu().numpy())

    def score(self, features: Features, predictions: Sequence[Any]) -> dict[str, float]:
        """See the class."""
        from sklearn.metrics import accuracy_score, f1_score

        truth, logits = features.references, np.stack(predictions)
        predicted = logits.argmax(-1)
        return {
            "accuracy": float(accuracy_score(truth, predicted)),
            "f1": float(f1_score(truth, predicted, average="macro", zero_division=0)),
            **SingleLabel().ranking(truth, logits),
        }

    def report(self, features: Features, predictions: Sequence[Any]) -> list[dict[str, Any]]:
        """By row its file or number, the predicted class and the true one."""
        return [
            {self.medium: source, "predicted": self.labels[logits.argmax()], "label": self.labels[label]}
            for source, logits, label in zip(features.sources, predictions, features.references, strict=True)
        ]

    def show(self, base: BaseModel, features: Features, index: int) -> str:
        """Its file or number, and its class."""
        return f"{features.sources[index]} -> {self.labels[features.references[index]]}"


def open_media(features: Features, medium: str, indices: Sequence[int], opener: Any) -> list[Any]:
    """What `opener` makes of the values at those indices.

    Raises:
        UsageError: it cannot; names the row and, if it has one, the file.
    """
    column: Any = features.inputs[medium]
    found = []
    # All at once: a column of `datasets` takes five times as long for rows one by one.
    for index, value in zip(indices, column[list(indices)], strict=True):
        try:
            found.append(opener(value))
        except UsageError as error:
            number = features.inputs["row"][index]
            raise UsageError(f"row {number}: {error}") from None
    return found


def _is_class(feature: Any) -> bool:
    return cell_kind(feature) in ("class", "integer", "bool", "text")


def _only(rows: Dataset, role: str, feature_type: type) -> str:
    """The only column of a type.

    Raises:
        UsageError: there is none, or there are several.
    """
    found = [name for name, feature in rows.features.items() if isinstance(feature, feature_type)]
    if len(found) != 1:
        several = f"{' and '.join(map(repr, found))} both could be"
        ask_for_column(rows, role, several if found else f"none has a usual name or is of type {feature_type.__name__}")
    return found[0]


def _names(rows: Dataset, name: str) -> list[str]:
    """What to call the rows: by the path of their files, or where there is none by their numbers.

    Raises:
        UsageError: a row has nothing in that column.
    """
    found: list[str | None] = []
    for table in rows.select_columns([name]).with_format("arrow").iter(1000):
        column = table.column(0)
        if column.null_count:
            row = row_numbers(rows)[len(found) + pc.index(column.is_null(), True).as_py()]
            raise UsageError(f"row {row}: nothing in column {name!r}; fill it in or drop the row")
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            found += column.to_pylist()
        elif pa.types.is_struct(column.type) and "path" in column.type.names:
            found += pc.struct_field(column, "path").to_pylist()
        else:
            found += [None] * len(column)
    return [path or f"row {row}" for row, path in zip(row_numbers(rows), found, strict=True)]
