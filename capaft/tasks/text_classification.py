"""Text classification: a text or a pair of texts to one of several classes, to any number of them, or to a number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from capaft.config.parts.task import TaskSettings
from capaft.data.lazy import Derived
from capaft.data.spool import lengths_of, stored_columns
from capaft.model.load import BaseModel
from capaft.support.errors import UsageError
from capaft.tasks.base.columns import (
    Columns,
    filled_rows,
    text_values,
)
from capaft.tasks.base.doubts import refuse_doubtful_text
from capaft.tasks.base.features import Batch, Features
from capaft.tasks.base.missing import BLANK
from capaft.tasks.base.task import Task
from capaft.tasks.base.task_answers import Record
from capaft.tasks.labels.columns import recognise_labelled_texts, recognise_texts
from capaft.tasks.labels.glue import official_metric
from capaft.tasks.labels.kind import problem_of
from capaft.tasks.labels.labelled import Labelled
from capaft.tasks.labels.multi_label import MultiLabel
from capaft.tasks.labels.problem import Problem
from capaft.tasks.labels.regression import Regression
from capaft.tasks.labels.single_label import SingleLabel, check_scoring
from capaft.tasks.labels.spelling import label_finder
from capaft.tasks.labels.target import is_target
from capaft.tasks.language.framing import frame
from capaft.tasks.language.plain_text import end_of_text_token, surrounding_tokens
from capaft.tasks.language.token_limit import token_limit
from capaft.tasks.language.truncation import CutRows, Inputs

if TYPE_CHECKING:
    from datasets import Dataset

    from capaft.tasks.base.evidence import Evidence


@dataclass(frozen=True)
class TextClassification(Labelled, Task):
    """The task.

    Attributes:
        problem: kind of the labels: `single`, `multi` or `regression`.
        label_separator: text between the labels of a row, if `multi` has them in one text.
        positive_label: label of `single` whose F1, precision and recall are scored; without one F1 is the macro mean.
        normalise_labels: labels that differ only in their spelling are one class.
    """

    name: ClassVar[str] = "text-classification"
    summary: ClassVar[str] = "A text or a pair of texts to one class, to any number of classes, or to a number."
    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    shares: ClassVar[frozenset[str]] = frozenset({"accuracy", "top5"})
    metrics: ClassVar[tuple[str, ...]] = tuple(
        dict.fromkeys(SingleLabel.metrics + MultiLabel.metrics + Regression.metrics)
    )

    precedence: ClassVar[int] = 50
    is_fallback: ClassVar[bool] = True

    problem: str = "single"
    label_separator: str = ""
    positive_label: str = ""
    normalise_labels: bool = False

    def __post_init__(self) -> None:
        if self.problem not in ("single", "multi", "regression"):
            raise UsageError(f"--problem must be single, multi or regression, got {self.problem}")
        names = self._problem.metrics
        object.__setattr__(self, "metric", self.metric or names[0])
        if self.metric not in names:
            raise UsageError(
                f"--metric must be one of {', '.join(names)} for {self.name} (--problem {self.problem}), "
                f"got {self.metric}"
            )
        if self.positive_label and self.problem != "single":
            raise UsageError("--positive-label needs rows with one label of several; drop it, or set --problem single")
        check_scoring(self.metric, self.labels, self.positive_label)

    @property
    def _problem(self) -> Problem:
        match self.problem:
            case "multi":
                return MultiLabel(self.label_separator, self.normalise_labels)
            case "regression":
                return Regression()
            case _:
                return SingleLabel(self.normalise_labels, self.positive_label)

    @classmethod
    def is_certain(cls, rows: Dataset, evidence: Evidence) -> bool:
        """True if the user set an option that no other task has."""
        return evidence.classify

    @classmethod
    def claims(cls, rows: Dataset, evidence: Evidence) -> bool:
        """True for texts with labels, unless the labels are only notes on the texts of a usual pair.

        Raises:
            UsageError: the columns cannot be determined.
        """
        return is_target(rows, evidence, cls.recognise(rows, evidence.named).label)

    @classmethod
    def doubt(cls, rows: Dataset, evidence: Evidence) -> None:
        """See `Task.doubt`."""
        columns = cls.recognise(rows, evidence.named)
        if evidence.named.get("text") is None and columns.pair is None:
            refuse_doubtful_text(rows, columns.text, cls.name, plain=False)

    @classmethod
    def recognise(cls, rows: Dataset, named: Mapping[str, str | None]) -> Columns:
        """See `recognise_labelled_texts`."""
        return recognise_labelled_texts(rows, named)

    @classmethod
    def decide(cls, rows: Dataset, columns: Columns, settings: TaskSettings, data: str = "") -> Self:
        """See `Task.decide`; the labels decide the problem if no setting does; GLUE has metrics of its own.

        GLUE scores MRPC and QQP by the F1 of their second class, the pairs that mean the same.
        """
        problem = problem_of(rows, columns) if settings.problem == "auto" else settings.problem
        plain = replace(settings, metric=None, problem=problem, positive_label="")
        task = super().decide(rows, columns, plain, data)
        labels = task._problem.classes(rows, columns)
        positive = label_finder(labels, normalise=task.normalise_labels)(settings.positive_label)
        positive = settings.positive_label if positive is None else positive
        official = official_metric(data)
        if official == "f1" and len(labels) == 2 and problem == "single":
            positive = positive or labels[1]
        metric = settings.metric or (official if official in task._problem.metrics else "")
        return replace(task, labels=labels, metric=metric, positive_label=positive)

    @classmethod
    def missing_texts(cls, rows: Dataset, columns: Columns, settings: TaskSettings) -> dict[str, frozenset[str]]:
        """See `Task.missing_texts`; where labels stand in one text, a blank one means that none applies."""
        missing = super().missing_texts(rows, columns, settings)
        if settings.problem == "multi" and columns.label is not None:
            missing[columns.label] -= BLANK
        return missing

    @classmethod
    def usable(cls, rows: Dataset, columns: Columns, settings: TaskSettings) -> NDArray[np.bool_]:
        """See `Task.usable`; the problem decides what a missing label is."""
        labelled = cls._problem_for(rows, columns, settings).labelled(rows, columns)
        return filled_rows(rows, columns.text, columns.pair) & labelled

    @classmethod
    def faults(cls, rows: Dataset, columns: Columns, settings: TaskSettings) -> Mapping[int, str]:
        """See `Task.faults`: a label that is no number among numbers."""
        return cls._problem_for(rows, columns, settings).faults(rows, columns)

    @classmethod
    def _problem_for(cls, rows: Dataset, columns: Columns, settings: TaskSettings) -> Problem:
        """The problem that settings name, or else the labels stand for."""
        problem = problem_of(rows, columns) if settings.problem == "auto" else settings.problem
        if problem == "multi":
            missing = frozenset(settings.missing_values)
            return MultiLabel(settings.label_separator or "", settings.normalise_labels, missing)
        return cls(problem=problem)._problem

    def check_labels(self, rows: Dataset, columns: Columns) -> None:
        """See `Task.check_labels`."""
        self._problem.encode(rows, columns, self.labels)

    def classes_of(self, rows: Dataset, columns: Columns) -> Sequence[int] | None:
        """See `Task.classes_of`."""
        return self._problem.encode(rows, columns, self.labels).tolist() if self.problem == "single" else None

    def model_config(self) -> dict[str, Any]:
        """A number is one output without a name."""
        outputs = super().model_config() if self.labels else {"num_labels": 1}
        return {**outputs, "problem_type": self._problem.problem_type}

    def features(self, base: BaseModel, rows: Dataset, columns: Columns, *, training: bool) -> Features:
        """Tokenise a split. References are the targets, `(rows, ...)`; sources the texts, by `text` and `pair`."""
        has_labels = columns.label is not None or bool(columns.choices)
        targets = self._problem.encode(rows, columns, self.labels) if has_labels else None
        first, second = text_values(rows, columns)
        tokenizer = base.processor
        around = frame(tokenizer, *surrounding_tokens(tokenizer))
        changed = [0]
        bare = around.strip_texts(first, changed)
        others = repeat(None, len(first)) if second is None else map(around.strip, second)
        cut = CutRows(tokenizer, token_limit(base, self.max_length))
        batches = cut.batches(zip(bare, others, strict=True))
        inputs = stored_columns(_with_a_token(tokenizer, batch) for batch in batches)
        parts = {"text": first} if second is None else {"text": first, "pair": second}
        sources = Derived(
            lambda *texts: dict(zip(parts, map(around.strip, texts), strict=True)),
            *parts.values(),
        )
        notes = around.note(changed[0], len(first), "texts")
        return Features(inputs, lengths_of(inputs["input_ids"]), targets, cut.truncated, sources, notes=notes)

    def collate(self, base: BaseModel, features: Features, indices: Sequence[int], *, training: bool) -> Batch:
        """Inputs `(batch, tokens)`, padded to the longest, and `labels`, `(batch, ...)`."""
        picked = {name: [column[i] for i in indices] for name, column in features.inputs.items()}
        padded = base.processor.pad(picked, return_tensors="pt")
        return Batch(dict(padded), features.targets(indices), len(indices))

    def idle_options(self, base: BaseModel) -> dict[str, str]:
        """See `Task.idle_options`."""
        idle = {
            "single": ("label_separator",),
            "regression": ("label_separator", "normalise_labels", "label_smoothing"),
        }
        return dict.fromkeys(idle.get(self.problem, ()), f"--problem {self.problem}")

    def loss(self, outputs: Any, targets: Mapping[str, Tensor], smoothing: float) -> Tensor:
        """The problem's loss, whose terms are examples."""
        return self._problem.loss(outputs.logits.float(), targets["labels"], smoothing)

    def predict(
        self, base: BaseModel, model: nn.Module, features: Features, indices: Sequence[int], batch: Batch, outputs: Any
    ) -> list[Any]:
        """The logits of each example, `(outputs,)`."""
        return list(outputs.logits.float().cpu().numpy())

    def score(self, features: Features, predictions: Sequence[Any]) -> dict[str, float]:
        """The problem's scores, from the logits of all examples."""
        logits = np.stack(predictions)
        problem = self._problem
        truth, predicted = features.references, problem.predicted(logits)
        scores = problem.scores(truth, predicted, logits.shape[1]) | problem.ranking(truth, logits)
        if isinstance(problem, SingleLabel):
            scores |= problem.positive_scores(truth, predicted, self.labels)
        return scores

    def report(self, features: Features, predictions: Sequence[Any]) -> list[dict[str, Any]]:
        """The texts of each row, its label, and the one predicted."""
        predicted = self._problem.predicted(np.stack(predictions))
        return [
            {**source, "label": self._named(truth), "predicted": self._named(answer)}
            for source, truth, answer in zip(features.sources, features.references, predicted, strict=True)
        ]

    def find_inputs(self, rows: Dataset, named: Mapping[str, str | None]) -> Columns:
        """See `recognise_texts`."""
        return recognise_texts(rows, named)

    def answer_fields(self, top: int | None = None) -> tuple[str, ...]:
        """See `Problem.answer_fields`."""
        return self._problem.answer_fields(top)

    def answer(self, features: Features, predictions: Sequence[Any], top: int | None = None) -> list[Record]:
        """See `Problem.answer`."""
        return [self._problem.answer(logits, self.labels, top) for logits in predictions]

    def show(self, base: BaseModel, features: Features, index: int) -> str:
        """The text as the model reads it, and its label."""
        text = base.processor.decode(features.inputs["input_ids"][index])
        return f"{text} -> {self._named(features.references[index])}"

    def _named(self, target: Any) -> Any:
        return self._problem.named(target, self.labels)


def _with_a_token(tokenizer: Any, inputs: Inputs) -> Inputs:
    """The inputs of a batch; without special tokens an empty text has no token for the model to read, and gets one."""
    for row in (row for row, ids in enumerate(inputs["input_ids"]) if not ids):
        for name, column in inputs.items():
            column[row] = [end_of_text_token(tokenizer) if name == "input_ids" else 0]
    return inputs
