"""The results of a run: what `results.json` holds, and what the card and the summary show."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from capaft.support.errors import UsageError
from capaft.support.json_types import fitting

BaselineHead = Literal["fitted", "own"]


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
        baseline_head: head of that base: `fitted` on its features, or the checkpoint's `own`; None without a baseline.
        interval: lower and upper end of the 95 % interval of the score, from the number of validation examples; None if
            it cannot be told.
        interval_method: `binomial` for a share of examples, else `bootstrap`; None without an interval.
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
        method_settings: options of the method stack, `targets`, number of `sites`, and how the head is trained.
        training_settings: rates, planned length, batches, optimizer, schedule and number formats.
        init_from: name of the `run` whose trained parameters were the start, and the `digest` of its file.
        machine: `device`, and the versions of capaft, Python and the packages that train.
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
    baseline_head: BaselineHead | None = None
    interval: list[float] | None = None
    interval_method: str | None = None
    method_settings: dict[str, Any] = field(default_factory=dict)
    training_settings: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, str] = field(default_factory=dict)
    init_from: dict[str, str] = field(default_factory=dict)

    @property
    def baseline_name(self) -> str:
        """The model and the head that the baseline is the score of."""
        origin = self.init_from.get("run")
        if self.baseline_head == "own":
            return origin or "the base model as it is"
        return f"{origin or 'frozen base'}, fitted head"

    def record(self) -> dict[str, Any]:
        """The results as plain values, by the keys of `results.json`."""
        return asdict(self)


_FIELDS = fields(Results)
# Results of earlier versions lack those that have a default.
_REQUIRED = {field.name for field in _FIELDS if field.default is MISSING and field.default_factory is MISSING}


def read_results(path: Path) -> Results:
    """Read a `results.json`.

    Raises:
        UsageError: the file is cut or is not a run's results.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        names = [field.name for field in _FIELDS if field.name in _REQUIRED or field.name in values]
        results = Results(**fitting({name: values[name] for name in names}, Results))
        if results.baseline is not None and "baseline_head" not in values:
            results = replace(results, baseline_head="fitted")
        if results.interval is not None and len(results.interval) != 2:
            raise ValueError("an interval has two ends")
        return results
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise UsageError(f"{path} is damaged; remove it and repeat the command with --resume") from None


def interval_text(interval: Sequence[float]) -> str:
    """An interval for people."""
    low, high = interval
    return f"95 % interval {low:.4f} to {high:.4f}"


def score_text(value: float | None) -> str:
    """A score in four digits, or "undefined", as some correlations of constants are (null in JSON)."""
    return "undefined" if value is None or math.isnan(value) else f"{value:.4f}"
