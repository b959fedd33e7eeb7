"""Settings of the evaluations, and of stopping early."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from capaft.config.ranges import at_least
from capaft.config.settings import Settings, setting

_setting = partial(setting, panel="Evaluation")


@dataclass(frozen=True)
class EvaluationSettings(Settings):
    """Settings of the evaluations, and of stopping early."""

    eval_epochs: int = _setting(1, "Epochs between evaluations.", check=at_least(1))
    eval_steps: int | None = _setting(
        None, "Steps between evaluations, instead of epochs (default: set by the epochs).", check=at_least(1)
    )
    patience: int | None = _setting(
        None, "Stop after this many evaluations without a better score (default: never).", check=at_least(1)
    )
    min_delta: float = _setting(0.0, "Gain that a score must exceed to reset --patience.", check=at_least(0))
    baseline: bool | None = _setting(
        None,
        "Score the frozen base first, under its own head or one fitted on its features (default: if that takes no more "
        "than a forward of the validation data).",
    )
    eval_batch_size: int = _setting(
        64,
        "Examples in a forward pass of an evaluation at most, in each process; fewer where a large vocabulary would "
        "fill the memory.",
        check=at_least(1),
    )
