"""The best evaluation so far, and how long the run has waited for a better one."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from capaft.tasks.base.uncertainty import Interval


@dataclass(frozen=True)
class Best:
    """The best evaluation so far, and how long the run has waited for more.

    Attributes:
        step: optimizer steps that it came after.
        value: its score; None before the first evaluation.
        scores: all its scores.
        waited: evaluations since the last one that was better by enough.
        beaten: the score that must be beaten by enough for the wait to end.
        interval: that of the score; None if it has none.
        digest: of the best adapter's file; see `record/best_adapter.py`.
        last: of the last adapter's file.
    """

    step: int = 0
    value: float | None = None
    scores: dict[str, float] = field(default_factory=dict)
    waited: int = 0
    beaten: float | None = None
    interval: Interval | None = None
    digest: str = ""
    last: str = ""

    def after(
        self,
        step: int,
        value: float,
        scores: dict[str, float],
        *,
        more_is_better: bool,
        min_delta: float,
        worst: float | None = None,
        interval: Interval | None = None,
    ) -> Best:
        """The state after one more evaluation: anything better is the best, more than `min_delta` ends the wait.

        Anything is better than an undefined score, such as some correlations of constants. Scores that tell nothing do
        not choose among adapters; until there is another, the lowest validation loss is the best. `worst` is the score
        where no example scores, if there is one.
        """
        if self.value is not None and all(tells_nothing(v, worst, more_is_better) for v in (self.value, value)):
            gain = self.scores.get("loss", math.inf) - scores.get("loss", math.inf)
            waited = 0 if gain > min_delta else self.waited + 1
            if gain > 0:
                return Best(step, value, scores, waited, self.beaten, interval)
            return replace(self, waited=waited)

        def gains(over: float | None) -> float:
            if over is None:
                return math.inf
            if math.isnan(over):
                return 0.0 if math.isnan(value) else math.inf
            return value - over if more_is_better else over - value

        ends = gains(self.beaten) > min_delta
        waited, beaten = (0, value) if ends else (self.waited + 1, self.beaten)
        if gains(self.value) > 0:
            return Best(step, value, scores, waited, beaten, interval)
        return replace(self, waited=waited, beaten=beaten)


def tells_nothing(value: float, worst: float | None, more_is_better: bool) -> bool:
    """True if a score is undefined, or what it is where no example scores."""
    if math.isnan(value) or worst is None:
        return math.isnan(value)
    return value == worst if more_is_better else value >= worst
