"""Laws of a seeded basis, over every basis at once, against matrices built entry by entry."""

from __future__ import annotations

from collections import Counter
from typing import Any

import naive_reader
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from capaft.factors import rng
from capaft.factors.basis import BASES, Basis, Hadamard, Uniform
from capaft.factors.rng import Streams
from capaft.support.errors import UsageError

SITES = "abc"
EVERY = pytest.mark.parametrize("kind", BASES)


def streams(*sites: str) -> list[Streams]:
    return [Streams(11, site, "down") for site in sites]


def build(kind: str, n: int, k: int, *sites: str) -> Basis:
    basis = BASES[kind](streams(*sites), n, k)
    basis.settle(None)
    return basis


def matrix(kind: str, n: int, k: int, site: str) -> np.ndarray[Any, Any]:
    return naive_reader.basis(kind, (11, site, "down"), n, k)


SIZES = [(1, 1), (5, 2), (7, 7), (8, 4), (33, 3), (64, 20), (100, 9)]
CASES = pytest.mark.parametrize(("kind", "n", "k"), [(kind, *size) for kind in BASES for size in SIZES])


def random(*shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(3).standard_normal(shape).astype(np.float32))


def assert_close(actual: Tensor, expected: Any) -> None:
    assert actual.dtype == torch.float32
    np.testing.assert_allclose(actual.numpy(), np.asarray(expected), rtol=1e-5, atol=1e-5)


# Laws


@EVERY
@given(n=st.integers(1, 80), k=st.integers(1, 24))
@settings(max_examples=40)
def test_expand_is_the_sum_over_basis_vectors(kind: str, n: int, k: int) -> None:
    assume(kind != "group" or k <= n)
    coefficients = random(3, k)
    expanded = build(kind, n, k, *SITES).expand(coefficients)
    for row, site in enumerate(SITES):
        vectors = matrix(kind, n, k, site).T
        total = sum(float(c) * vector for c, vector in zip(coefficients[row], vectors, strict=True))
        assert_close(expanded[row], total)


@pytest.mark.parametrize(("n", "k"), [(100, 9), (120, 64), (128, 3), (250, 7)])
def test_long_vectors_are_transformed_as_well(n: int, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    short, coefficients, gradient = build("hadamard", n, k, *SITES), random(3, k), random(3, n)
    monkeypatch.setattr(Hadamard, "TWO_SIDES", 64)
    long = build("hadamard", n, k, *SITES)
    assert_close(long.expand(coefficients), short.expand(coefficients))
    assert_close(long.adjoint(gradient), short.adjoint(gradient))


def test_the_sides_of_a_long_vector_stay_short() -> None:
    """A kilobyte of a file can ask for a vector as long as a model's embedding."""
    basis = build("hadamard", 2**21 + 1, 4, "a")
    assert isinstance(basis, Hadamard)
    assert max(basis.left.shape) == 256


@EVERY
@given(n=st.integers(1, 80), k=st.integers(1, 24))
@settings(max_examples=40)
def test_adjoint_is_the_adjoint(kind: str, n: int, k: int) -> None:
    assume(kind != "group" or k <= n)
    basis = build(kind, n, k, *SITES)
    coefficients, gradient = random(3, k), random(3, n)
    pulled = basis.adjoint(gradient)
    for row, site in enumerate(SITES):
        assert_close(pulled[row], matrix(kind, n, k, site).T @ gradient[row].double().numpy())
    left = float((basis.expand(coefficients).double() * gradient.double()).sum())
    right = float((coefficients.double() * pulled.double()).sum())
    assert left == pytest.approx(right, rel=1e-4, abs=1e-5)


@CASES
def test_sites_together_equal_sites_one_by_one(kind: str, n: int, k: int) -> None:
    together = build(kind, n, k, *SITES)
    coefficients, gradient = random(len(SITES), k), random(len(SITES), n)
    for row, site in enumerate(SITES):
        alone = build(kind, n, k, site)
        assert_close(together.expand(coefficients)[row], alone.expand(coefficients[row : row + 1])[0].double())
        assert_close(together.adjoint(gradient)[row], alone.adjoint(gradient[row : row + 1])[0].double())


@CASES
def test_words_used_are_the_words_read(kind: str, n: int, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    furthest: Counter[rng.Key] = Counter()
    draw = rng.words

    def recording(key: rng.Key, count: int, start: int = 0) -> rng.Words:
        furthest[key] = max(furthest[key], start + count)
        return draw(key, count, start)

    monkeypatch.setattr(rng, "words", recording)
    basis = build(kind, n, k, "a")
    basis.adjoint(basis.expand(random(1, k)))
    (stream,) = streams("a")
    promised = {stream.key(purpose): count for purpose, count in BASES[kind].words_used(n, k).items()}
    assert furthest == promised
    method = {"k": [k, k], "basis": kind}
    assert BASES[kind].words_used(n, k) == naive_reader.streams_read(method, "up", n)


@EVERY
def test_a_basis_has_no_parameters_and_leaves_nothing_in_a_checkpoint(kind: str) -> None:
    basis = build(kind, 64, 4, "a")
    assert list(basis.parameters()) == []
    assert basis.state_dict() == {}


@pytest.mark.parametrize("kind", ["uniform", "hadamard"])
@pytest.mark.parametrize("k", [8, 50])
def test_entries_have_variance_one_over_three_k(kind: str, k: int) -> None:
    basis = build(kind, 2000, k, "a")
    for column in (basis.expand(torch.eye(k)[:1]), basis.expand(torch.eye(k)[-1:])):
        # The variance of 2000 entries of U(-1, 1) has a relative standard error of 2 percent.
        assert float(column.double().square().mean() * 3 * k) == pytest.approx(1, abs=0.1)
        assert abs(float(column.double().mean()) * (3 * k) ** 0.5) < 0.1


@pytest.mark.parametrize(
    ("kind", "scale", "column"),
    [
        ("hadamard", 3, [-1, 1, -1, -1, -1, -1, -1, 1, 1]),
        ("uniform", 65536 * 3**0.5, [50031, 13151, 54575, 34709, 12567, 52671, 43177, 28359, 12377]),
        ("group", 3**0.5, [0, 0, -1, 0, 0, 1, -1, 0, 0]),
    ],
)
def test_golden_column(kind: str, scale: float, column: list[int]) -> None:
    """Column 1 of a basis of 3 vectors of length 9, scaled so that its entries are whole numbers."""
    basis = BASES[kind]([Streams(0, "layer.0.query", "down")], 9, 3)
    basis.settle(None)
    vector = basis.expand(torch.eye(3)[1:2])[0]
    assert_close(vector * scale, column)


# Single bases


@pytest.mark.parametrize(("n", "k"), [(9, 8), (16, 8), (17, 16), (33, 31), (50, 32), (64, 32), (100, 17), (129, 128)])
def test_hadamard_has_rank_k_and_a_small_condition_number(n: int, k: int) -> None:
    size = Hadamard.transform_size(n, k)
    assert size >= max(n, 2 * k) > size / 2
    assert n > size / 2
    for site in "abcd":
        columns = Hadamard(streams(*[site] * k), n, k).expand(torch.eye(k)).double()
        values = torch.linalg.svdvals(columns)
        assert len(values) == k
        assert float(values[0] / values[-1]) <= 2**0.5 + 1e-5
    assert len({int(column) % (size // 2) for column in Hadamard(streams("a"), n, k).columns[0]}) == k


@pytest.mark.parametrize(("n", "k"), [(64, 4), (100, 9), (1000, 50)])
def test_group_is_an_isometry(n: int, k: int) -> None:
    basis = build("group", n, k, "a", "b")
    coefficients = random(2, k)
    assert_close(basis.expand(coefficients).norm(dim=1), coefficients.norm(dim=1))
    assert_close(basis.adjoint(basis.expand(coefficients)), coefficients)


def test_groups_that_sites_share_are_an_isometry_together() -> None:
    shapes = [(40, "a"), (40, "b"), (9, "c")]
    bases = [BASES["group"](streams(site), n, 12) for n, site in shapes]
    for basis in bases:
        basis.settle(bases)
    coefficients = random(1, 12)
    whole = torch.cat([basis.expand(coefficients) for basis in bases], dim=1)
    assert_close(whole.norm(), coefficients.norm())
    assert_close(sum(basis.adjoint(basis.expand(coefficients)) for basis in bases), coefficients)


@pytest.mark.parametrize(("n", "k"), [(1, 1), (7, 7), (100, 9), (4608, 4607)])
def test_the_groups_of_a_site_are_balanced(n: int, k: int) -> None:
    sizes = (matrix("group", n, k, "a") != 0).sum(0)
    assert set(sizes.tolist()) <= {n // k, -(-n // k)}


def test_a_site_has_no_empty_group() -> None:
    with pytest.raises(UsageError, match=r"k 5 is more than the 2 entries of factor .* smaller --k"):
        build("group", 2, 5, "a")


def test_an_empty_group_of_the_whole_model_is_said_and_has_no_effect() -> None:
    bases = [BASES["group"](streams(site), 3, 12) for site in "ab"]
    with pytest.warns(UserWarning, match=r"leaves [6-9] of 12 coefficients without an entry"):
        bases[0].settle(bases)
    bases[1].settle(bases)
    whole = torch.cat([basis.expand(torch.eye(12)[index : index + 1]) for index in range(12) for basis in bases], 0)
    assert torch.isfinite(whole).all()
    assert int((whole.view(12, -1).norm(dim=1) > 0).sum()) <= 6


@pytest.mark.parametrize(("n", "k"), SIZES)
def test_uniform_gives_the_same_numbers_when_it_is_not_kept(n: int, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    coefficients, gradient = random(2, k), random(2, n)
    kept = build("uniform", n, k, "a", "b")
    monkeypatch.setattr(Uniform, "RESIDENT_BYTES", 0)
    for entries in (1, 3 * n, 2**22):
        monkeypatch.setattr(Uniform, "BLOCK_ENTRIES", entries)
        drawn_again = Uniform(streams("a", "b"), n, k)
        assert kept.resident is not None
        assert drawn_again.resident is None
        assert_close(drawn_again.expand(coefficients), kept.expand(coefficients))
        assert_close(drawn_again.adjoint(gradient), kept.adjoint(gradient))
