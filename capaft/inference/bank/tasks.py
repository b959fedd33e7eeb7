"""Rows that name their adapters, answered in joint batches: one forward, and each answer by its own adapter's task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch import nn

from capaft.inference.bank.bank import Bank
from capaft.model.load import BaseModel
from capaft.support.errors import UsageError
from capaft.tasks.base.columns import Columns
from capaft.tasks.base.features import Batch, Features
from capaft.tasks.base.task import Task
from capaft.tasks.base.task_answers import Record


@dataclass(frozen=True)
class NamedFeatures(Features):
    """Features, each with the name of its adapter.

    Attributes:
        adapters: the names.
    """

    adapters: Sequence[str] = ()

    def at(self, rows: NDArray[np.int64]) -> Features:
        """See `Features.at`."""
        return replace(super().at(rows), adapters=[self.adapters[row] for row in rows])  # type: ignore[call-arg]


class JointTask:
    """Tasks that differ in their labels alone, for `Answerer` to take for one task.

    Inputs are prepared by any of them, and all of a batch go through the model together; what comes out is read by the
    task of each one's adapter.

    Args:
        bank: the adapters.
        column: the column of the rows that names them.
        task_of: the task of an adapter.
        lead: one of the tasks.
    """

    def __init__(self, bank: Bank, column: str, task_of: Callable[[str], Task], lead: Task) -> None:
        self._bank, self._column, self._task_of, self._lead = bank, column, task_of, lead

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lead, name)

    def answer_features(self, base: BaseModel, rows: Dataset, columns: Columns) -> Features:
        """The features of rows, with the names of their adapters.

        Raises:
            UsageError: features are not rows, and the rows are of several adapters.
        """
        made = self._lead.answer_features(base, rows, columns)
        names = [str(name) for name in rows[self._column]]
        if len(made) != len(names):
            if len(set(names)) > 1:
                raise UsageError("rows that become several features, or none, are answered one by one")
            names = names[:1] * len(made)
        fields = {name: value for name, value in vars(made).items() if name != "adapters"}
        return NamedFeatures(**fields, adapters=names)

    def answer_batch(
        self, base: BaseModel, model: nn.Module, features: Features, indices: Sequence[int], batch: Batch
    ) -> list[Any]:
        """The predictions of a batch, each by its adapter."""
        names = [features.adapters[index] for index in indices]  # type: ignore[attr-defined]
        tasks = _positions([self._task_of(name) for name in names])
        with self._bank.batch(names):
            if len(tasks) == 1:
                (task,) = tasks
                return task.answer_batch(base, model, features, indices, batch)
            outputs = model(**batch.inputs)
        predictions: list[Any] = [None] * len(names)
        for task, places in tasks.items():
            rows = torch.tensor(places, device=outputs.logits.device)
            # Filled up to the most labels of the batch.
            logits = outputs.logits.index_select(0, rows)[..., : len(self._bank.labels(names[places[0]]))]
            inputs = {name: _rows(value, rows, len(names)) for name, value in batch.inputs.items()}
            of_task = [indices[place] for place in places]
            part = Batch(inputs, {}, len(places))
            answers = task.predict(base, model, features, of_task, part, SimpleNamespace(logits=logits))
            for place, answer in zip(places, answers, strict=True):
                predictions[place] = answer
        return predictions

    def answer(self, features: Features, predictions: Sequence[Any], top: int | None = None) -> list[Record]:
        """The records, each by the task of its adapter."""
        tasks = _positions([self._task_of(name) for name in features.adapters])  # type: ignore[attr-defined]
        if len(tasks) <= 1:
            return next(iter(tasks), self._lead).answer(features, predictions, top)
        records: list[Record] = [{} for _ in predictions]
        for task, places in tasks.items():
            of_task = features.at(np.array(places, dtype=np.int64))
            answers = task.answer(of_task, [predictions[place] for place in places], top)
            for place, answer in zip(places, answers, strict=True):
                records[place] = answer
        return records


def joint_key(task: Task) -> tuple[Any, ...]:
    """What two tasks have to have in common for their rows to go through the model together: all but the labels."""
    options = {name: value for name, value in vars(task).items() if name not in ("labels", "metric")}
    return type(task), repr(sorted(options.items()))


def _positions(tasks: Sequence[Task]) -> dict[Task, list[int]]:
    """The positions of each task among some."""
    positions: dict[Task, list[int]] = {}
    for at, task in enumerate(tasks):
        positions.setdefault(task, []).append(at)
    return positions


def _rows(value: Any, rows: torch.Tensor, count: int) -> Any:
    is_batch = isinstance(value, torch.Tensor) and value.ndim and len(value) == count
    return value.index_select(0, rows.to(value.device)) if is_batch else value
