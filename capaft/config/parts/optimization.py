"""Settings of the optimization: its length, batches, rates and schedule."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from capaft.config.choices import HeadInit, Optimizer, Schedule
from capaft.config.ranges import FRACTION, RATE, at_least
from capaft.config.restarts import are_restarts
from capaft.config.settings import Settings, setting

_setting = partial(setting, panel="Optimization")


@dataclass(frozen=True)
class OptimizationSettings(Settings):
    """Settings of the optimization: its length, batches, rates and schedule."""

    epochs: int | None = _setting(
        None, "Passes over the training data (default: set by the method).", check=at_least(1)
    )
    max_steps: int | None = _setting(
        None, "Optimizer steps, instead of epochs (default: set by the epochs).", check=at_least(1)
    )
    batch_size: int = _setting(32, "Examples in an optimizer step, over all processes.", check=at_least(1))
    micro_batch_size: int | None = _setting(
        None,
        "Examples in a forward pass; gradients add up to those of the batch exactly (default: all).",
        check=at_least(1),
    )
    lr: float | None = _setting(None, "Peak learning rate (default: set by the method).", check=RATE)
    head_lr: float | None = _setting(None, "Peak learning rate of the head (default: set by the method).", check=RATE)
    head_init: HeadInit = _setting(
        "fitted", "Start of a new head: fitted on the frozen base's features, or drawn from the seed."
    )
    optimizer: Optimizer = _setting("adamw", "Optimizer; the 8-bit one needs the package bitsandbytes.")
    warmup: float = _setting(
        0.06,
        "Steps in which the learning rate rises: below 1 a share of all steps, from 1 on their number.",
        check=at_least(0),
    )
    lora_plus_ratio: float = _setting(
        1.0, "Learning rate of the up factors relative to the down factors (LoRA+).", check=RATE
    )
    weight_decay: float = _setting(0.0, "Weight decay of matrices, decoupled except for sgd.", check=at_least(0))
    schedule: Schedule = _setting("linear", "Course of the learning rate after the warm-up.")
    restarts: tuple[str, ...] | None = _setting(
        None,
        "Steps at which warm-up, schedule and patience start anew, as where a finished run was extended; 24/40 where "
        "the schedule was to end at step 40 (default: none).",
        metavar="step,...",
        check=("ascending steps such as 40,80 or 24/40", are_restarts),
    )
    clip: float = _setting(1.0, "Largest norm of the gradient; 0 turns clipping off.", check=at_least(0))
    label_smoothing: float = _setting(0.0, "Share of the target spread over all labels.", check=FRACTION)
