"""Initial values of a factor."""

from __future__ import annotations

import math

import naive_reader
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from capaft.factors.factor import Factor
from capaft.factors.rng import Streams


@given(st.integers(0, 2**64 - 1), st.integers(1, 6), st.integers(1, 30))
def test_theta0_is_kaiming_uniform_for_down_and_zero_for_up(seed: int, rank: int, wide: int) -> None:
    down = Factor("down", (rank, wide), 0, "uniform", wide).initial(Streams(seed, "h.0", "down"))
    assert down.dtype == np.float32
    assert down.tolist() == naive_reader.theta0("uniform", (seed, "h.0", "down"), rank * wide, wide).tolist()
    assert (abs(down) < 1 / math.sqrt(wide) * (1 + 1e-7)).all()
    up = Factor("up", (wide, rank), 1, 0.0, rank).initial(Streams(seed, "h.0", "up"))
    assert up.tolist() == [0] * rank * wide


def test_golden_theta0() -> None:
    theta0 = Factor("down", (2, 3), 0, "uniform", 3).initial(Streams(0, "layer.0.query", "down"))
    assert [value.hex() for value in theta0.tolist()] == [
        "0x1.a4801c0000000p-2",
        "-0x1.1c597a0000000p-1",
        "0x1.fd2b360000000p-3",
        "-0x1.1b208e0000000p-2",
        "0x1.b0bba80000000p-2",
        "0x1.7c03840000000p-2",
    ]
