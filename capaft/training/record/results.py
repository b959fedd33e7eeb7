"""The results of a run: what `results.json` holds, and what the card and the summary show."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from capaft.support.errors import UsageError
from capaft.support.json_types import fitting


@dataclass(frozen=True)
class Results:
    """The results of a finished run.

    Attributes:
        output: the run directory.
        model: name of the base model.
        data: what the user called the data set.
        task: name of the task.
        method: the method stack.
        metric: name of the score that picked the adapter.
        value: that score on validation; None if it is undefined.
        baseline: the same score of the frozen base; None if it was not measured.
        trainable_parameters: of adapter and head together.
        adapter_parameters: trainable parameters of the adapter.
        head_parameters: trainable parameters of the model's own, mostly of the head.
        scores: all scores of the saved adapter, by name.
        best_step: optimizer steps after which it was saved.
        seconds: spent training, evaluations included.
        examples_per_second: training examples over the same time.
        adapter_bytes: size of the adapter file.
        peak_memory_bytes: highest memory use: of the accelerator, or of the process on a CPU.
        epochs: passes over the training data.
        steps: optimizer steps; fewer than planned if no better score came.
        processes: number of processes that trained.
        bytes_per_step: gradients that each process sent in a step.
        seed: the run's seed.
        train_examples: number of training examples.
        validation_examples: number of validation examples.
        labels: class names, in the order of the model's outputs.
        next: commands that make sense after the run.
        score_names: names for people of scores whose own name leaves open what they are averaged over.
    """

    output: str
    model: str
    data: str
    task: str
    method: str
    metric: str
    value: float | None
    baseline: float | None
    trainable_parameters: int
    adapter_parameters: int
    head_parameters: int
    scores: dict[str, float | None]
    best_step: int
    seconds: float
    examples_per_second: float
    adapter_bytes: int
    peak_memory_bytes: int
    epochs: float
    steps: int
    processes: int
    bytes_per_step: int
    seed: int
    train_examples: int
    validation_examples: int
    labels: list[str]
    next: list[str]
    score_names: dict[str, str] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """The results as plain values, by the keys of `results.json`."""
        return asdict(self)


_NAMES = tuple(field.name for field in fields(Results))


def read_results(path: Path) -> Results:
    """Read a `results.json`.

    Raises:
        UsageError: the file is cut or is not a run's results.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        kept = {name: values[name] for name in _NAMES if name != "score_names" or name in values}
        return Results(**fitting(kept, Results))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise UsageError(f"{path} is damaged; remove it and repeat the command with --resume") from None


def score_text(value: float | None) -> str:
    """A score in four digits, or "undefined", as some correlations of constants are (null in JSON)."""
    return "undefined" if value is None or math.isnan(value) else f"{value:.4f}"
