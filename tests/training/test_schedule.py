"""Schedules against transformers' own, and against the formulas of their papers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import get_args, get_type_hints

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from capaft.config.train_config import TrainConfig
from capaft.training import schedule

STEPS, WARMUP = 60, 12
NAMES = get_args(schedule.Schedule)


def theirs(make: Callable[..., torch.optim.lr_scheduler.LambdaLR], *numbers: int, **options: float) -> list[float]:
    """Transformers' factors for every step."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    course = make(optimizer, *numbers, **options)
    factors = []
    for _ in range(STEPS):
        factors.append(course.get_last_lr()[0])
        optimizer.step()
        course.step()
    return factors


def ours(name: str, warmup: int = WARMUP, steps: int = STEPS) -> list[float]:
    at = schedule.course(name, warmup, steps)  # type: ignore[arg-type]
    return [at(step) for step in range(steps)]


def test_every_name_is_a_setting() -> None:
    assert get_args(get_type_hints(TrainConfig)["schedule"]) == NAMES
    assert len(NAMES) == 7


@pytest.mark.parametrize("name", NAMES)
def test_the_rate_rises_linearly_to_its_peak(name: str) -> None:
    assert ours(name)[:WARMUP] == pytest.approx([(step + 1) / WARMUP for step in range(WARMUP)])
    assert all(0 <= factor <= 1 for factor in ours(name))


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("linear", theirs(transformers.get_linear_schedule_with_warmup, WARMUP, STEPS)),
        ("cosine", theirs(transformers.get_cosine_schedule_with_warmup, WARMUP, STEPS)),
        ("constant", theirs(transformers.get_constant_schedule_with_warmup, WARMUP)),
        (
            "cosine-restarts",
            theirs(transformers.get_cosine_with_hard_restarts_schedule_with_warmup, WARMUP, STEPS, num_cycles=4),
        ),
        (
            "polynomial",
            theirs(transformers.get_polynomial_decay_schedule_with_warmup, WARMUP, STEPS, lr_end=0.0, power=2.0),
        ),
    ],
)
def test_transformers_has_the_same_after_the_rise(name: str, reference: list[float]) -> None:
    assert ours(name)[WARMUP:] == pytest.approx(reference[WARMUP:], abs=1e-12)


def test_inverse_square_root_is_that_of_the_transformer() -> None:
    # Equation 3 of Vaswani et al. 2017, steps counted from 1, over its own peak.
    paper = [min((step + 1) ** -0.5, (step + 1) * WARMUP**-1.5) for step in range(STEPS)]
    assert ours("inverse-sqrt") == pytest.approx([rate / max(paper) for rate in paper])


def test_wsd_falls_in_the_last_tenth_of_what_follows_the_rise() -> None:
    factors = ours("wsd", 10, 110)
    assert factors[10:100] == [1.0] * 90
    assert factors[100:] == pytest.approx([1.0 - rate / 10 for rate in range(10)])


@pytest.mark.parametrize(("warmup", "steps"), [(0.06, 50), (0.07, 100), (0.29, 100), (0.57, 100)])
def test_a_share_of_the_steps_is_taken_exactly(warmup: float, steps: int) -> None:
    # As products of floats, some of these are just above a whole number.
    assert schedule.warmup_steps(warmup, steps) == round(100 * warmup) * steps // 100


def test_from_one_on_warmup_is_a_number_of_steps() -> None:
    assert schedule.warmup_steps(0.0, 500) == 0
    assert schedule.warmup_steps(0.001, 500) == 1
    assert schedule.warmup_steps(1.0, 500) == 1
    assert schedule.warmup_steps(500.0, 100) == 500


@given(st.sampled_from(NAMES), st.integers(0, 40), st.integers(1, 40))
def test_any_run_has_rates_between_nothing_and_the_peak(name: str, warmup: int, steps: int) -> None:
    factors = ours(name, warmup, steps)
    assert all(math.isfinite(factor) and 0 <= factor <= 1 for factor in factors)
    assert factors[0] > 0
