"""Answers of a task to rows without a target: what it predicts for each, as a record.

Such rows take the way of an evaluation, and three things are left out: their columns have no label, their features no
references, and their batches no targets. A task that answers overrides `answer_fields` and `answer`, and has its
`features` and `collate` do without a label; all else has a default.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import nn

from capaft.model.load import BaseModel
from capaft.support.errors import UsageError
from capaft.tasks.base.columns import Columns, filled_rows
from capaft.tasks.base.features import Batch, Features

if TYPE_CHECKING:
    from datasets import Dataset

Record = dict[str, Any]
"""What is predicted for a row, by name: values that JSON has."""

ERROR = "error"
"""The field of a record that says why a row has no answer."""


class TaskAnswers(ABC):
    """Base of `Task`: how a task answers rows without a target."""

    name: ClassVar[str]
    input_names: ClassVar[tuple[str, ...]] = ("text",)
    """Usual names of the columns of its inputs, for rows that have no columns, such as lines: one, or two for pairs."""

    def answer_fields(self, top: int | None = None) -> tuple[str, ...]:
        """Names of the fields of an answer, in their order; by default none, and the task does not answer.

        Args:
            top: number of the likeliest classes, or texts, that each record lists; None if nobody asked for them.
        """
        return ()

    def check_answers(self) -> None:
        """Make sure that the task answers.

        Raises:
            UsageError: it does not.
        """
        if not self.answer_fields():
            raise self._silence()

    def _silence(self) -> UsageError:
        return UsageError(f"{self.name} gives no answers yet; score it with capaft eval")

    @abstractmethod
    def find_columns(self, rows: Dataset, named: Mapping[str, str | None]) -> Columns:
        """See `TaskRows.find_columns`."""

    def find_inputs(self, rows: Dataset, named: Mapping[str, str | None]) -> Columns:
        """The columns of rows to answer; by default those of `find_columns`, without the label.

        A task whose `find_columns` needs a label has its own.

        Args:
            rows: the rows.
            named: the columns that the user, or the training, names, by role; `label` never has any.

        Raises:
            UsageError: a named column is missing, or another one cannot be determined.
        """
        return replace(self.find_columns(rows, named), label=None)

    def unanswerable(self, rows: Dataset, columns: Columns) -> Mapping[int, str]:
        """The rows that the model cannot be asked about, by position, each with what is wrong.

        By default those that lack an input. No other method meets them. Blank texts are null here.

        Args:
            rows: the rows.
            columns: their columns.
        """
        wrong: dict[int, str] = {}
        for name in (columns.pair, columns.text):
            if name is not None:
                lacking = np.flatnonzero(~filled_rows(rows, name)).tolist()
                wrong |= dict.fromkeys(lacking, f"there is nothing in column {name!r}")
        return wrong

    @abstractmethod
    def features(self, base: BaseModel, rows: Dataset, columns: Columns, *, training: bool) -> Features:
        """See `Task.features`."""

    def answer_features(self, base: BaseModel, rows: Dataset, columns: Columns) -> Features:
        """The rows as features without references; by default those of `features`.

        Args:
            base: the base model.
            rows: the rows.
            columns: their columns, without a label.

        Raises:
            UsageError: nothing can be made of a row.
        """
        return self.features(base, rows, columns, training=False)

    @abstractmethod
    def predict(
        self, base: BaseModel, model: nn.Module, features: Features, indices: Sequence[int], batch: Batch, outputs: Any
    ) -> list[Any]:
        """The predictions of a batch, one a feature, as `score` and `answer` read them: small, on the CPU, picklable.

        Args:
            base: the base model.
            model: the model to call, or to generate with.
            features: all features.
            indices: those in the batch.
            batch: the batch, on the model's device.
            outputs: of the model for the batch.
        """

    def answer_batch(
        self, base: BaseModel, model: nn.Module, features: Features, indices: Sequence[int], batch: Batch
    ) -> list[Any]:
        """The predictions of a batch without targets; by default those of `predict`, after one forward.

        A task that writes texts generates here, without the forward.

        Args:
            base: the base model.
            model: the model to call.
            features: all features.
            indices: those in the batch.
            batch: the batch, on the model's device.
        """
        return self.predict(base, model, features, indices, batch, model(**batch.inputs))

    def answer(self, features: Features, predictions: Sequence[Any], top: int | None = None) -> list[Record]:
        """The answers, one record a row in the order of the rows, each with the fields of `answer_fields`.

        A record may have `error` instead: a line that says why there is no answer. Where a row has several features, or
        none, it still gets one record.

        Args:
            features: the features of the rows.
            predictions: those of all features, in their order.
            top: as in `answer_fields`.
        """
        raise self._silence()
