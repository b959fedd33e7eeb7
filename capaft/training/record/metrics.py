"""The records of a run: one for each optimizer step, one for each evaluation; a line of `metrics.jsonl` each."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from capaft.support.json_types import fitting


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step.

    Attributes:
        step: optimizer steps done.
        epoch: passes over the training data so far.
        loss: mean loss of the batch; None if it was not finite.
        lr: learning rate of the first parameter group.
        examples_per_second: training examples per second since this start.
        seconds_left: estimate for the rest of the run.
        peak_memory_bytes: highest memory use so far.
    """

    step: int
    epoch: float
    loss: float | None
    lr: float
    examples_per_second: float
    seconds_left: float
    peak_memory_bytes: int

    def tracked(self) -> dict[str, float]:
        """The numbers of the record, for trackers."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class EvaluationRecord:
    """One evaluation.

    Attributes:
        step: optimizer steps done.
        epoch: passes over the training data so far.
        metric: name of the score that picks the best adapter.
        value: that score; None if it is undefined, as in JSON.
        validation_loss: mean loss over the validation split.
        best: True if no earlier evaluation was as good.
        scores: all scores but the loss, by name.
        examples_per_second: training examples per second since this start.
        seconds_left: estimate for the rest of the run.
        peak_memory_bytes: highest memory use so far.
        interval: lower and upper end of the 95 % interval of that score; None if it has none.
    """

    step: int
    epoch: float
    metric: str
    value: float | None
    validation_loss: float | None
    best: bool
    scores: dict[str, float | None]
    examples_per_second: float
    seconds_left: float
    peak_memory_bytes: int
    interval: list[float] | None = None

    def tracked(self) -> dict[str, float]:
        """The numbers of the record, scores included, for trackers."""
        values = vars(self) | self.scores
        return {name: value for name, value in values.items() if isinstance(value, int | float)}


Record = StepRecord | EvaluationRecord


def parse_record(values: Any) -> Record:
    """The record that a line of `metrics.jsonl` holds; what another version added to it is left out.

    Raises:
        ValueError: it holds none.
    """
    try:
        kind = StepRecord if "loss" in values else EvaluationRecord
        values = fitting(values, kind)
        record = kind(**{field.name: values[field.name] for field in fields(kind) if field.name in values})
    except TypeError as error:
        raise ValueError(f"must be a record: {error}") from None
    if isinstance(record, EvaluationRecord) and record.interval is not None and len(record.interval) != 2:
        raise ValueError("must have an interval with two ends")
    return record
