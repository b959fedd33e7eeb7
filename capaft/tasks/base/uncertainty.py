"""The uncertainty of a score that comes from the number of examples: an interval around it.

A share of examples has a binomial interval (Wilson 1927), which is wide for few examples even if all of them are right.
The standard error of any other score is estimated by scoring resamples of the examples (Efron 1979, "Bootstrap
methods"), and the interval is 1.96 of it to both sides. Neither knows of another seed, or of examples of other sources.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from capaft.tasks.base.features import Features
    from capaft.tasks.base.task import Task

Interval = tuple[float, float]
"""Lower and upper end, at 95 % confidence."""

# Resamples know a standard error to a tenth. They are of so many examples at most, so that scoring them takes no longer
# for large data; the error falls with the square root of the number of examples.
_RESAMPLES = 50
_SIZE = 400
# Resamples of fewer examples are too much alike.
_FEWEST = 10
_NORMAL = 1.96
_CORRELATIONS = frozenset({"matthews", "pearson", "spearman", "pearson_spearman"})


class Resampler(NamedTuple):
    """A score as a function of some of the examples.

    Attributes:
        size: number of examples, or of whatever parts are drawn independently of one another.
        score: the score of some of them, by their positions; a position may occur several times.
    """

    size: int
    score: Callable[[NDArray[np.int64]], float]


def feature_resampler(task: Task, features: Features, predictions: Sequence[Any]) -> Resampler | None:
    """A task's metric over some of the features; None if the references are not one a feature."""
    if features.references is not None and not hasattr(features.references, "__getitem__"):
        return None

    def score(rows: NDArray[np.int64]) -> float:
        return task.score(features.at(rows), [predictions[row] for row in rows]).get(task.metric, math.nan)

    return Resampler(len(features), score)


def mean_resampler(values: Sequence[float] | NDArray[Any]) -> Resampler:
    """A score that is the mean of a value of each example."""
    by_example = np.asarray(values, dtype=np.float64)
    return Resampler(len(by_example), lambda rows: float(by_example[rows].mean()))


def interval_method(task: Task) -> str:
    """The method of the interval of a task's metric: `binomial` or `bootstrap`."""
    return "binomial" if task.metric in task.shares else "bootstrap"


def score_interval(task: Task, features: Features, predictions: Sequence[Any], value: float) -> Interval | None:
    """The interval of a task's metric.

    Args:
        task: the task.
        features: the examples.
        predictions: one a feature.
        value: the metric over all examples.

    Returns:
        None if the score is undefined, if its error cannot be estimated from predictions, or if they are too few or
        too much alike to tell it.
    """
    if not math.isfinite(value):
        return None
    if task.metric in task.shares:
        return binomial_interval(value, features.examples)
    resampler = task.resampler(features, predictions)
    error = None if resampler is None else bootstrap_error(resampler)
    if not error:
        return None
    lowest = -1.0 if task.metric in _CORRELATIONS else min(0.0, value)
    highest = 1.0 if task.more_is_better and value <= 1 else math.inf
    return max(lowest, value - _NORMAL * error), min(highest, value + _NORMAL * error)


def binomial_interval(share: float, examples: int) -> Interval:
    """Wilson's interval of a share of examples."""
    from scipy.stats import binomtest

    ends = binomtest(round(share * examples), examples).proportion_ci(0.95, method="wilson")
    return float(ends.low), float(ends.high)


def bootstrap_error(resampler: Resampler) -> float | None:
    """The standard error of a score; None if there are too few examples, or most resamples have no score."""
    if resampler.size < _FEWEST:
        return None
    size = min(resampler.size, _SIZE)
    generator = np.random.default_rng(0)
    scores = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(_RESAMPLES):
            # Some scores are not defined without an example of every class.
            with suppress(ValueError):
                scores.append(resampler.score(generator.integers(0, resampler.size, size)))
    finite = [score for score in scores if math.isfinite(score)]
    if len(finite) <= _RESAMPLES // 2:
        return None
    return float(np.std(finite, ddof=1)) * math.sqrt(size / resampler.size)
