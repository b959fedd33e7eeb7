"""Answers to rows without labels: some thousand rows at a time, in the order of the rows.

Within these the batches are made by length, and a row that cannot be answered gets a record that says why, while the
others go on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import nn

from capaft.model.load import BaseModel
from capaft.model.weights import device_of
from capaft.support.errors import UsageError
from capaft.tasks.base.columns import Columns, with_row_numbers
from capaft.tasks.base.features import Features
from capaft.tasks.base.missing import BLANK, with_nulls
from capaft.tasks.base.task import Task
from capaft.tasks.base.task_answers import ERROR, Record
from capaft.tasks.base.token_ids import check_token_ids
from capaft.training import batches
from capaft.training.evaluate import move_batch
from capaft.training.fitting_batch import FittingBatch

Advance = Callable[[int], None]

# The number of a row, and perhaps the beginning of its text.
_PLACE = re.compile(r"^row \d+( \(.*?\))?: ")


def _ignore(rows: int) -> None:
    pass


class _Unanswered(str):
    """The reason why a feature has no prediction, in place of it."""


@dataclass(frozen=True)
class Answerer:
    """A task and its model, which answer rows.

    Attributes:
        task: the task.
        base: the base model, whose processor prepares the rows.
        model: the model to call, on the device it runs on, in evaluation mode.
        batch_size: features in a forward at most.
        top: number of the likeliest classes, or texts, that a record lists; None for none.
        autocast: makes the context that forwards run in.
        fitting: what earlier forwards found to fit into memory.
    """

    task: Task
    base: BaseModel
    model: nn.Module
    batch_size: int
    top: int | None = None
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    fitting: FittingBatch = field(default_factory=FittingBatch)

    def fields(self) -> tuple[str, ...]:
        """Names of the fields that an answer may have, in their order."""
        return self.task.answer_fields(self.top)

    def answer(self, rows: Dataset, columns: Columns, first: int = 1, advance: Advance = _ignore) -> list[Record]:
        """The answers to some rows, one record a row in their order; a row without an answer has `error`.

        Args:
            rows: the rows, as many as may be in memory with all that is made of them.
            columns: their columns.
            first: number of the first of them, for messages.
            advance: called with the number of rows that are done.

        Raises:
            TrainingError: memory ran out with a single row.
        """
        if not len(rows):
            return []
        inputs = [name for name in (columns.text, columns.pair, *columns.choices) if name is not None]
        numbered = with_row_numbers(with_nulls(rows, dict.fromkeys(inputs, BLANK)), first)
        wrong = self.task.unanswerable(numbered, columns)
        records: dict[int, Record] = {row: {ERROR: reason} for row, reason in wrong.items()}
        advance(len(wrong))
        answerable = [row for row in range(len(rows)) if row not in wrong]
        if answerable:
            answers = self._answered(numbered.select(answerable), columns, advance)
            records |= zip(answerable, answers, strict=True)
        return [records[row] for row in range(len(rows))]

    def _answered(self, rows: Dataset, columns: Columns, advance: Advance) -> list[Record]:
        """The answers to rows that have inputs: those that nothing can be made of are found by halving the rows."""
        try:
            features = self.task.answer_features(self.base, rows, columns)
            check_token_ids(self.base, features)
            answers = self._answers_of(features, len(rows), advance)
        except UsageError as error:
            if len(rows) == 1:
                advance(1)
                return [{ERROR: _without_place(str(error))}]
            middle = len(rows) // 2
            halves = (range(middle), range(middle, len(rows)))
            return [record for half in halves for record in self._answered(rows.select(half), columns, advance)]
        return answers

    def _answers_of(self, features: Features, rows: int, advance: Advance) -> list[Record]:
        """The answers to the rows of some features.

        Raises:
            UsageError: there is none for one of them, and features are not rows.
        """
        predictions = self._predictions(features, rows, advance)
        lost = {at: reason for at, reason in enumerate(predictions) if isinstance(reason, _Unanswered)}
        if lost and features.rows is not None:
            raise UsageError(next(iter(lost.values())))
        kept = [at for at in range(len(features)) if at not in lost]
        records: dict[int, Record] = {at: {ERROR: str(reason)} for at, reason in lost.items()}
        if lost:
            features = features.at(np.array(kept, dtype=np.int64))
        answers = self.task.answer(features, [predictions[at] for at in kept], self.top) if kept or not lost else []
        if not lost:
            assert len(answers) == rows, "a task gives one answer a row"
            return answers
        records |= zip(kept, answers, strict=True)
        return [records[at] for at in range(rows)]

    def _predictions(self, features: Features, rows: int, advance: Advance) -> list[Any]:
        """The prediction of each feature of some rows, or the reason why there is none."""
        predictions: list[Any] = [None] * len(features)
        done = 0
        logits = self.task.logits(self.base, features)
        device = device_of(self.model)

        def forward(indices: Sequence[int]) -> list[Any]:
            try:
                batch = move_batch(self.task.collate(self.base, features, indices, training=False), device)
                return self.task.answer_batch(self.base, self.model, features, indices, batch)
            except UsageError as error:
                if len(indices) == 1:
                    return [_Unanswered(_without_place(str(error)))]
            middle = len(indices) // 2
            return forward(indices[:middle]) + forward(indices[middle:])

        with torch.inference_mode(), self.autocast():
            for batch in batches.evaluation_batches(features.lengths, self.batch_size, logits):
                for indices, answers in self.fitting.in_parts(batch, forward):
                    for index, answer in zip(indices, answers, strict=True):
                        predictions[index] = answer
                    # A row may have several features.
                    advance((done + len(indices)) * rows // len(features) - done * rows // len(features))
                    done += len(indices)
        return predictions


def _without_place(message: str) -> str:
    """A message without the number of the row that it begins with, which the place of the record tells."""
    return _PLACE.sub("", message)
