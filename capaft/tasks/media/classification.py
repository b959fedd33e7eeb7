"""One class of several for an image or a recording: everything but making a batch of files, in which media differ."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import datasets
import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from capaft.config.parts.task import TaskSettings
from capaft.model.load import BaseModel
from capaft.tasks.base.columns import Columns, cell_kind, filled_rows, find_column, row_numbers
from capaft.tasks.base.features import Batch, Features
from capaft.tasks.base.task import Task
from capaft.tasks.base.task_answers import Record
from capaft.tasks.labels.labelled import Labelled
from capaft.tasks.labels.single_label import SingleLabel, check_scoring
from capaft.tasks.labels.spelling import label_finder
from capaft.tasks.media.files import media_column, media_names, only_column, refuse_pair

if TYPE_CHECKING:
    from datasets import Dataset

    from capaft.tasks.base.evidence import Evidence

CLASS_NAMES = (
    ("label", "labels"),
    ("finelabel",),
    ("class", "category", "target", "digit", "genre", "emotion", "intent", "intentclass", "command"),
)
"""Usual names of columns of classes, as `find_column` takes them."""


@dataclass(frozen=True)
class MediaClassification(Labelled, Task):
    """Base of the tasks whose inputs are files. They are read when a batch is made: all of them seldom fit into memory.

    Scores: `accuracy`; `f1`, the unweighted mean over the classes that occur; and with more than five classes `top5`,
    the share of examples whose class is among the five most likely. With a positive label, `f1`, `precision` and
    `recall` are its own.

    Attributes:
        positive_label: label whose F1, precision and recall are scored.
        normalise_labels: labels that differ only in their spelling are one class.
    """

    shares: ClassVar[frozenset[str]] = frozenset({"accuracy", "top5"})
    metrics: ClassVar[tuple[str, ...]] = ("accuracy", "f1", "top5", "precision", "recall")

    positive_label: str = ""
    normalise_labels: bool = False

    medium: ClassVar[str]
    """The input in one word; the usual name of its column."""
    usual_names: ClassVar[tuple[tuple[str, ...], ...]]
    """Names of its column, as `find_column` takes them."""
    feature_type: ClassVar[type]
    """Type of such a column in `datasets`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_scoring(self.metric, self.labels, self.positive_label)

    @property
    def _problem(self) -> SingleLabel:
        return SingleLabel(self.normalise_labels, self.positive_label)

    @classmethod
    @abstractmethod
    def fits(cls, feature: Any) -> bool:
        """True if a column with this `datasets` feature can hold the inputs."""

    @classmethod
    def is_certain(cls, rows: Dataset, evidence: Evidence) -> bool:
        """True if a column is of the type made for the inputs."""
        return any(isinstance(feature, cls.feature_type) for feature in rows.features.values())

    @classmethod
    def recognise(cls, rows: Dataset, named: Mapping[str, str | None]) -> Columns:
        """Find the inputs and their labels: by name, else each as the only column of the type made for it.

        Raises:
            UsageError: a named column is missing or not usable, or another one cannot be determined.
        """
        text = cls._input_columns(rows, named).text
        label = find_column(rows, "label", named.get("label"), CLASS_NAMES, _is_class, "one class a row", (text,))
        label = label or only_column(rows, "label", datasets.ClassLabel)
        return Columns(text, None, label)

    @classmethod
    def _input_columns(cls, rows: Dataset, named: Mapping[str, str | None]) -> Columns:
        refuse_pair(cls.name, cls.medium, named)
        return Columns(media_column(rows, named, cls.medium, cls.usual_names, cls.fits, cls.feature_type))

    @classmethod
    def classes(cls, rows: Dataset, columns: Columns) -> tuple[str, ...]:
        """See `SingleLabel.classes`."""
        return SingleLabel().classes(rows, columns)

    @classmethod
    def decide(cls, rows: Dataset, columns: Columns, settings: TaskSettings, data: str = "") -> Self:
        """See `Task.decide`."""
        task = super().decide(rows, columns, replace(settings, metric=None, positive_label=""), data)
        labels = task._problem.classes(rows, columns) if task.normalise_labels else task.labels
        positive = label_finder(labels, normalise=task.normalise_labels)(settings.positive_label)
        return replace(
            task, labels=labels, metric=settings.metric or "", positive_label=positive or settings.positive_label
        )

    @classmethod
    def usable(cls, rows: Dataset, columns: Columns, settings: TaskSettings) -> NDArray[np.bool_]:
        """See `Task.usable`."""
        return filled_rows(rows, columns.text) & SingleLabel().labelled(rows, columns)

    def classes_of(self, rows: Dataset, columns: Columns) -> Sequence[int]:
        """See `Task.classes_of`."""
        return self._problem.encode(rows, columns, self.labels).tolist()

    def features(self, base: BaseModel, rows: Dataset, columns: Columns, *, training: bool) -> Features:
        """The column unchanged, and the class of each row as `references`, `(rows,)`, if there are labels.

        Raises:
            UsageError: a row has no input or no label, or a label that the task does not have.
        """
        rows = rows.with_format(None)
        if isinstance(rows.features[columns.text], self.feature_type):
            rows = rows.cast_column(columns.text, self.feature_type(decode=False))
        return Features(
            inputs={self.medium: rows[columns.text], "row": row_numbers(rows)},
            lengths=np.ones(len(rows), dtype=np.int64),
            references=None if columns.label is None else self._problem.encode(rows, columns, self.labels),
            sources=media_names(rows, columns.text),
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
        truth, logits = features.references, np.stack(predictions)
        predicted = logits.argmax(-1)
        scores = self._problem.scores(truth, predicted, logits.shape[1])
        return {
            "accuracy": scores["accuracy"],
            "f1": scores["f1"],
            **self._problem.positive_scores(truth, predicted, self.labels),
            **self._problem.ranking(truth, logits),
        }

    def report(self, features: Features, predictions: Sequence[Any]) -> list[dict[str, Any]]:
        """The file or number of each row, its predicted class and its true one."""
        return [
            {self.medium: source, "predicted": self.labels[logits.argmax()], "label": self.labels[label]}
            for source, logits, label in zip(features.sources, predictions, features.references, strict=True)
        ]

    def find_inputs(self, rows: Dataset, named: Mapping[str, str | None]) -> Columns:
        """See `TaskAnswers.find_inputs`: the column of the files, as `recognise` finds it."""
        return self._input_columns(rows, named)

    def answer_fields(self, top: int | None = None) -> tuple[str, ...]:
        """See `Problem.answer_fields`."""
        return self._problem.answer_fields(top)

    def answer(self, features: Features, predictions: Sequence[Any], top: int | None = None) -> list[Record]:
        """See `Problem.answer`."""
        return [self._problem.answer(logits, self.labels, top) for logits in predictions]

    def show(self, base: BaseModel, features: Features, index: int) -> str:
        """The file or number, and the class."""
        return f"{features.sources[index]} -> {self.labels[features.references[index]]}"


def _is_class(feature: Any) -> bool:
    return cell_kind(feature) in ("class", "integer", "bool", "text")
