"""Masks and masked copies."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_factors import COPIES, DOWN, OUTER, SEED, UP, build, streams

from capaft.factors.capaboost import Copies
from capaft.factors.expansion import Expansion
from capaft.factors.factor import Factor
from capaft.factors.rng import Streams


@pytest.mark.parametrize(
    ("density", "n", "kept"),
    [(0.29, 100, 29), (0.57, 100, 57), (0.1, 30, 3), (0.7, 10, 7), (1.0, 7, 7), (0.5, 7, 3), (1e-05, 10**5, 1)],
)
def test_masks_keep_the_floor_of_the_exact_decimal(density: float, n: int, kept: int) -> None:
    assert Copies(2, density, "random").kept(n) == kept


def test_a_product_of_floats_would_keep_fewer() -> None:
    assert int(0.29 * 100) == 28


@given(st.integers(1, 9999), st.integers(0, 4), st.integers(1, 10**9))
def test_kept_is_exact_for_any_decimal(digits: int, places: int, n: int) -> None:
    exact = Fraction(digits, 10 ** (4 + places))
    assert Copies(1, float(exact), "random").kept(n) == math.floor(exact * n)


@pytest.mark.parametrize("copies", [COPIES["d=2"], COPIES["d=3"]], ids=["d=2", "d=3"])
def test_random_masks_are_different_and_of_one_size(copies: Copies) -> None:
    drawn = [copies.draw(factor, stream) for factor in (DOWN, UP) for stream in streams(factor)]
    for masks in drawn:
        assert (masks.sum(axis=1) == copies.kept(masks.shape[1])).all()
        assert len({mask.tobytes() for mask in masks}) == copies.copies
    assert len({masks.tobytes() for masks in drawn}) == len(drawn)


@pytest.mark.parametrize("copies", [1, 2, 3, 7])
def test_partition_masks_are_disjoint_and_complete(copies: int) -> None:
    for stream in streams(DOWN):
        masks = Copies(copies, 1 / copies, "partition").draw(DOWN, stream)
        assert masks.shape == (copies, DOWN.size)
        assert (masks.sum(axis=0) == 1).all()


def test_golden_masks() -> None:
    factor, stream = Factor("down", (2, 6), 0, "uniform", 6), Streams(0, "layer.0.query", "down")
    random_masks = Copies(2, 0.5, "random").draw(factor, stream)
    assert [np.flatnonzero(mask).tolist() for mask in random_masks] == [[3, 4, 6, 8, 9, 11], [0, 1, 7, 8, 9, 10]]
    partition = Copies(3, 1 / 3, "partition").draw(factor, stream)
    assert partition.argmax(axis=0).tolist() == [2, 0, 1, 1, 2, 2, 2, 0, 2, 1, 1, 1]


@pytest.mark.parametrize("copies", [Copies(4, 0.25, "random", "variance"), Copies(4, 0.25, "partition", "variance")])
def test_rescaled_masks_keep_the_variance(copies: Copies) -> None:
    wide = Factor("down", (100, 400), 0, "uniform", 400)
    expansion, start = Expansion.build(wide, [Streams(SEED, "h.0", "down")], None, copies)
    assert expansion(start).square().mean().item() == pytest.approx(1 / 3 / 400, rel=0.03)


def test_what_has_no_hidden_axis_is_not_copied() -> None:
    with pytest.raises(AssertionError, match="no hidden axis"):
        build(OUTER, None, COPIES["d=2"])
