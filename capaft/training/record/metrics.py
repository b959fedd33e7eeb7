"""The records of a run: one for each optimizer step, one for each evaluation; a line of `metrics.jsonl` each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any


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

# What JSON may have for a field of a type; a whole number may stand for a fraction.
_JSON_TYPES: dict[str, Any] = {
    "int": int,
    "float": int | float,
    "float | None": int | float | None,
    "str": str,
    "bool": bool,
    "dict[str, float | None]": dict,
    "list[float] | None": list | None,
}


def parse_record(values: Any) -> Record:
    """The record that a line of `metrics.jsonl` holds; what another version added to it is left out.

    Raises:
        ValueError: it holds none.
    """
    if not isinstance(values, Mapping):
        raise ValueError("must be a record")
    kind = StepRecord if "loss" in values else EvaluationRecord
    present = {field.name: values[field.name] for field in fields(kind) if field.name in values}
    for field in fields(kind):
        is_missing = field.name not in present and field.default is MISSING
        if is_missing or not isinstance(present.get(field.name), _JSON_TYPES[str(field.type)]):
            raise ValueError(f"must have {field.name} of type {field.type}")
    interval = present.get("interval")
    if interval is not None and not (len(interval) == 2 and all(isinstance(end, int | float) for end in interval)):
        raise ValueError("must have an interval of two numbers")
    return kind(**present)
