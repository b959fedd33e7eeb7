"""The best evaluation, step by step and against a look back over all of them."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from capaft.training.early_stopping import Best


def after(values: list[float], more_is_better: bool = True, min_delta: float = 0.0) -> Best:
    best = Best()
    for step, value in enumerate(values, start=1):
        best = best.after(step, value, {"m": value}, more_is_better=more_is_better, min_delta=min_delta)
    return best


def test_before_the_first() -> None:
    assert after([]) == Best(0, None, {}, 0)


def test_a_better_one_replaces_it_and_ends_the_wait() -> None:
    assert after([0.5, 0.4, 0.3]) == Best(1, 0.5, {"m": 0.5}, 2, 0.5)
    assert after([0.5, 0.4, 0.6]) == Best(3, 0.6, {"m": 0.6}, 0, 0.6)


def test_less_can_be_better() -> None:
    assert after([0.5, 0.4, 0.6], more_is_better=False) == Best(2, 0.4, {"m": 0.4}, 1, 0.4)


def test_as_good_is_not_better() -> None:
    assert after([0.5, 0.5, 0.5]).waited == 2


def test_small_gains_are_kept_and_do_not_end_the_wait() -> None:
    assert after([0.5, 0.55, 0.59], min_delta=0.1) == Best(3, 0.59, {"m": 0.59}, 2, 0.5)
    assert after([0.5, 0.55, 0.625], min_delta=0.1) == Best(3, 0.625, {"m": 0.625}, 0, 0.625)
    assert after([0.5, 0.45, 0.375], min_delta=0.1, more_is_better=False).waited == 0


def test_any_score_is_better_than_one_that_is_not_defined() -> None:
    assert after([math.nan, 0.1]).step == 2
    assert after([0.1, math.nan]) == Best(1, 0.1, {"m": 0.1}, 1, 0.1)


def test_scores_that_are_never_defined_end_the_wait() -> None:
    best = after([math.nan] * 4)
    assert (best.step, best.waited) == (1, 3)


def test_the_loss_decides_while_every_score_is_zero() -> None:
    best = Best()
    for step, (value, loss) in enumerate([(0.0, 3.0), (0.0, 2.0), (0.0, 2.5), (math.nan, 1.75)], start=1):
        best = best.after(step, value, {"m": value, "loss": loss}, more_is_better=True, min_delta=0.5, worst=0.0)
    assert (best.step, best.waited) == (4, 2)  # The last gain is too small to end the wait.
    best = best.after(5, 0.01, {"m": 0.01, "loss": 9.0}, more_is_better=True, min_delta=0.0, worst=0.0)
    assert (best.step, best.waited, best.beaten) == (5, 0, 0.01)


def test_the_loss_decides_while_every_word_is_wrong() -> None:
    best = Best()
    for step, (value, loss) in enumerate([(1.0, 3.0), (1.25, 2.0), (1.0, 2.5)], start=1):
        best = best.after(step, value, {"wer": value, "loss": loss}, more_is_better=False, min_delta=0.0, worst=1.0)
    assert best.step == 2
    assert best.after(4, 0.9, {"wer": 0.9, "loss": 9.0}, more_is_better=False, min_delta=0.0, worst=1.0).step == 4


def test_no_loss_is_asked_where_zero_is_the_best_score() -> None:
    best = Best()
    for step, loss in enumerate([3.0, 2.0], start=1):
        best = best.after(step, 0.0, {"wer": 0.0, "loss": loss}, more_is_better=False, min_delta=0.0, worst=1.0)
    assert best.step == 1


@given(st.lists(st.floats(-10, 10), min_size=1), st.booleans(), st.floats(0, 1))
def test_it_is_the_first_of_the_best(values: list[float], more: bool, min_delta: float) -> None:
    expected = (max if more else min)(values)
    best = after(values, more, min_delta)
    assert (best.value, best.step) == (expected, values.index(expected) + 1)
    if not min_delta:
        assert best.waited == len(values) - best.step
