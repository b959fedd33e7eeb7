"""The course of the learning rate, as a pure function of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from fractions import Fraction

from capaft.config.choices import Schedule
from capaft.config.restarts import Restart

# Power of `polynomial`, turns of `cosine-restarts`, and the share of the run in which `wsd` decays.
POWER = 2.0
TURNS = 4
DECAY = 0.1


def warmup_steps(warmup: float, steps: int) -> int:
    """Steps in which the rate rises: below 1 a share of all steps, from 1 on their number."""
    # A product of floats would make 8 steps of 0.07 * 100.
    return math.ceil(Fraction(str(warmup)) * steps) if warmup < 1 else round(warmup)


def restarted_course(
    schedule: Schedule, warmup: float, steps: int, restarts: Sequence[Restart]
) -> Callable[[int], float]:
    """The learning rate at a step, as `course` gives it, for a run whose schedule starts anew at some steps.

    Args:
        schedule: its name.
        warmup: as `warmup_steps` takes it, for each part between two restarts.
        steps: optimizer steps of the whole run.
        restarts: the steps at which the schedule starts anew.
    """
    starts = [0, *(restart.step for restart in restarts)]
    lengths = [end - start for start, end in zip(starts, [*(r.planned for r in restarts), steps], strict=True)]
    courses = [course(schedule, warmup_steps(warmup, length), length) for length in lengths]

    def at(step: int) -> float:
        part = bisect.bisect_right(starts, step) - 1
        return courses[part](step - starts[part])

    return at


def course(schedule: Schedule, warmup: int, steps: int) -> Callable[[int], float]:
    """The learning rate at a step, counted from 0, relative to its peak: a linear rise, then the schedule.

    `wsd` stays at the peak and falls linearly in the last tenth of what follows the rise (Hu et al. 2024,
    arXiv 2404.06395);
    `inverse-sqrt` is that of Vaswani et al. 2017; `cosine-restarts` that of Loshchilov & Hutter 2017, in four turns.

    Args:
        schedule: its name.
        warmup: steps in which the rate rises.
        steps: optimizer steps of the whole run.
    """

    def at(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        done = min(1.0, (step - warmup) / max(1, steps - warmup))
        match schedule:
            case "constant":
                return 1.0
            case "linear":
                return 1 - done
            case "polynomial":
                return float((1 - done) ** POWER)
            case "cosine":
                return 0.5 * (1 + math.cos(math.pi * done))
            case "cosine-restarts":
                return 0.5 * (1 + math.cos(math.pi * (done * TURNS % 1))) if done < 1 else 0.0
            case "inverse-sqrt":
                return math.sqrt(max(1, warmup) / max(1, step + 1))
            case "wsd":
                return min(1.0, (1 - done) / DECAY)

    return at
