"""Which evaluation was the best so far, and when to stop waiting for a better one."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Best:
    """The best evaluation so far.

    Attributes:
        step: optimiser steps that it came after.
        value: its value of the metric; None before the first evaluation.
        scores: all its scores.
        waited: evaluations since then.
    """

    step: int = 0
    value: float | None = None
    scores: dict[str, float] = field(default_factory=dict)
    waited: int = 0

    def after(
        self, step: int, value: float, scores: dict[str, float], *, more_is_better: bool, min_delta: float
    ) -> Best:
        """The best one, after one more evaluation; it has `waited` 0 if that was better by more than `min_delta`.

        Anything is better than a score that is not defined, as some correlations of constants are not.
        """
        if self.value is not None and not math.isnan(self.value):
            gain = value - self.value if more_is_better else self.value - value
            if not gain > min_delta:
                return replace(self, waited=self.waited + 1)
        return Best(step, value, scores)
