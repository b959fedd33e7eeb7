"""Laws of the maps from trained numbers to factors, over every source and every kind of copies at once."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import product
from typing import Any

import naive_reader
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from capaft.factors.basis import BASES
from capaft.factors.capaboost import Copies
from capaft.factors.expansion import Expansion, parameter_bounds, words_used
from capaft.factors.factor import Factor
from capaft.factors.nola import Coefficients, Seeded
from capaft.factors.rng import Streams

SEED, SITES = 5, ("h.0", "h.1", "h.10")
DOWN = Factor("down", (3, 10), 0, "uniform", 10)
UP = Factor("up", (7, 3), 1, 0.0, 3)
INNER = Factor("inner", (9,), 0, 0.1)
OUTER = Factor("outer", (15,), None)
FROZEN = Factor("frozen", (7, 3), 1, "uniform", 3, frozen=True)

SOURCES = (
    {"dense": None}
    | {basis: Coefficients(4, basis) for basis in BASES}
    | {f"{basis}-shared": Coefficients(4, basis, "model") for basis in BASES}
)
COPIES = {
    "plain": None,
    "d=1": Copies(1, 0.5, "random"),
    "d=2": Copies(2, 0.29, "random"),
    "d=3": Copies(3, 0.9, "random"),
    "partition": Copies(3, 1 / 3, "partition"),
    "rescaled": Copies(2, 0.29, "random", "variance"),
    "rescaled partition": Copies(3, 1 / 3, "partition", "variance"),
}
CASES = [
    *product((DOWN, UP, INNER), SOURCES, COPIES),
    *product((OUTER,), SOURCES, ["plain"]),  # Without a hidden axis there are no copies.
    *product((FROZEN,), ["dense"], COPIES),
]
EVERY = pytest.mark.parametrize(
    ("factor", "source", "copies"),
    [
        pytest.param(factor, SOURCES[source], COPIES[copies], id=f"{factor.name}-{source}-{copies}")
        for factor, source, copies in CASES
    ],
)


def streams(factor: Factor) -> list[Streams]:
    return [Streams(SEED, site, factor.name) for site in SITES]


def build(factor: Factor, source: Coefficients | None, copies: Copies | None) -> tuple[Expansion, Tensor]:
    expansion, start = Expansion.build(factor, streams(factor), source, copies)
    if isinstance(expansion.source, Seeded) and expansion.source.shared:
        expansion.source.basis.settle([expansion.source.basis])
    return expansion, start


def method_of(source: Coefficients | None, copies: Copies | None) -> dict[str, Any]:
    """The same stack in the words of an adapter file."""
    method: dict[str, Any] = {"k": [source.k] * 2, "basis": source.basis} if source else {}
    if copies:
        method |= {"copies": copies.copies, "density": copies.density, "masks": copies.masks}
    return method


def rescaled(copies: Copies | None) -> float:
    return 1 / math.sqrt(copies.density) if copies and copies.rescale == "variance" else 1


def theta0(factor: Factor, site: str) -> Any:
    of_site = (SEED, "" if factor.frozen else site, factor.name)
    return naive_reader.theta0(factor.init, of_site, factor.size, factor.fan_in)


def random(like: Tensor, seed: int) -> Tensor:
    draw = np.random.default_rng(seed).standard_normal(tuple(like.shape))
    return torch.from_numpy(draw.astype(np.float32))


class Naive:
    """The map as matrices: `factors = offset + matrix @ numbers`, both for all sites and copies, flat."""

    def __init__(self, factor: Factor, source: Coefficients | None, copies: Copies | None) -> None:
        method = method_of(source, copies)
        blocks, offsets, sizes = [], [], None
        if source and source.scope == "model" and source.basis == "group":
            keys = [naive_reader.key_of(SEED, site, factor.name, "group") for site in SITES]
            taken = np.concatenate([naive_reader.buckets(key, factor.size, source.k) for key in keys])
            sizes = np.bincount(taken, minlength=source.k)
        for site in SITES:
            of_site = (SEED, site, factor.name)
            masks = naive_reader.masks(method, of_site, factor.size)
            initial = theta0(factor, site)
            if source:
                block = naive_reader.basis(source.basis, of_site, factor.size, source.k, sizes)
            elif factor.frozen:
                block = np.zeros((factor.size, 0))
            else:
                block = np.eye(factor.size)[:, masks.any(axis=0)]
                initial = 0 * initial
            masks = masks * rescaled(copies)
            blocks.append(self.widen(factor, masks, block))
            offsets.append(self.widen(factor, masks, initial[:, None])[:, 0])
        # Numbers of their own stand side by side for each site; shared ones are the same columns for all.
        shared = source is not None and source.scope == "model"
        self.matrix = np.concatenate(blocks) if shared else block_diagonal(blocks)
        self.offset = np.concatenate(offsets)

    @staticmethod
    def widen(factor: Factor, masks: Any, columns: Any) -> Any:
        """Masked copies side by side along the hidden axis, for each column of `(n, columns)`."""
        copies = [(mask[:, None] * columns).reshape(*factor.shape, columns.shape[1]) for mask in masks]
        return np.concatenate(copies, axis=factor.hidden_axis).reshape(len(masks) * factor.size, columns.shape[1])


def block_diagonal(blocks: list[Any]) -> Any:
    rows, columns = ([0, *np.cumsum([block.shape[axis] for block in blocks])] for axis in (0, 1))
    matrix = np.zeros((rows[-1], columns[-1]))
    for number, block in enumerate(blocks):
        matrix[rows[number] : rows[number + 1], columns[number] : columns[number + 1]] = block
    return matrix


# theta0


@given(st.integers(0, 2**64 - 1), st.integers(1, 6), st.integers(1, 30))
def test_theta0_is_kaiming_uniform_for_down_and_zero_for_up(seed: int, rank: int, wide: int) -> None:
    down = Factor("down", (rank, wide), 0, "uniform", wide).initial(Streams(seed, "h.0", "down"))
    assert down.dtype == np.float32
    assert down.tolist() == naive_reader.theta0("uniform", (seed, "h.0", "down"), rank * wide, wide).tolist()
    assert (abs(down) < 1 / math.sqrt(wide) * (1 + 1e-7)).all()
    up = Factor("up", (wide, rank), 1, 0.0, rank).initial(Streams(seed, "h.0", "up"))
    assert up.tolist() == [0] * rank * wide


def test_golden_theta0() -> None:
    found = Factor("down", (2, 3), 0, "uniform", 3).initial(Streams(0, "layer.0.query", "down"))
    assert [value.hex() for value in found.tolist()] == [
        "0x1.a4801c0000000p-2",
        "-0x1.1c597a0000000p-1",
        "0x1.fd2b360000000p-3",
        "-0x1.1b208e0000000p-2",
        "0x1.b0bba80000000p-2",
        "0x1.7c03840000000p-2",
    ]


# Masks


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


# The maps


@EVERY
def test_expand_equals_naive_loops(factor: Factor, source: Coefficients | None, copies: Copies | None) -> None:
    expansion, start = build(factor, source, copies)
    naive = Naive(factor, source, copies)
    numbers = random(start, 1)
    found = expansion(numbers)
    width = list(factor.shape)
    if factor.hidden_axis is not None:
        width[factor.hidden_axis] *= copies.copies if copies else 1
    assert found.shape == (len(SITES), *width)
    assert found.dtype == torch.float32
    expected = naive.offset + naive.matrix @ numbers.flatten().double().numpy()
    np.testing.assert_allclose(found.flatten().numpy(), expected, rtol=1e-5, atol=1e-5)


@EVERY
def test_training_starts_from_theta0(factor: Factor, source: Coefficients | None, copies: Copies | None) -> None:
    expansion, start = build(factor, source, copies)
    method = method_of(source, copies)
    found = expansion(start)
    for row, site in enumerate(SITES):
        masks = naive_reader.masks(method, (SEED, site, factor.name), factor.size) * rescaled(copies)
        expected = Naive.widen(factor, masks, theta0(factor, site)[:, None]).flatten()
        if rescaled(copies) == 1:
            assert found[row].flatten().tolist() == expected.tolist()
        np.testing.assert_allclose(found[row].flatten().numpy(), expected, rtol=1e-6)


@EVERY
def test_gradients_equal_naive_ones(factor: Factor, source: Coefficients | None, copies: Copies | None) -> None:
    expansion, start = build(factor, source, copies)
    numbers = random(start, 1).requires_grad_()
    factors = expansion(numbers)
    weights = random(factors, 2)
    (factors.square() * weights).sum().backward()
    naive = Naive(factor, source, copies)
    inside = naive.offset + naive.matrix @ numbers.detach().flatten().double().numpy()
    expected = naive.matrix.T @ (2 * inside * weights.flatten().double().numpy())
    assert numbers.grad is not None
    np.testing.assert_allclose(
        numbers.grad.flatten().numpy(), expected, rtol=1e-4, atol=1e-5 * abs(expected).max(initial=0)
    )


@EVERY
def test_gradients_pass_through_again(factor: Factor, source: Coefficients | None, copies: Copies | None) -> None:
    expansion, start = build(factor, source, copies)
    numbers = random(start, 1).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(_refuse, _refuse):
        factors = expansion(numbers)
    weights = random(factors, 2)
    (first,) = torch.autograd.grad(factors, numbers, weights, retain_graph=True)
    (second,) = torch.autograd.grad(factors, numbers, weights)
    # Nothing is saved, so not even a graph that was freed is in the way, nor numbers changed in place since.
    with torch.no_grad():
        numbers.add_(1)
    (third,) = torch.autograd.grad(factors, numbers, weights)
    assert torch.equal(first, second)
    assert torch.equal(first, third)


def _refuse(tensor: Any) -> Any:
    raise AssertionError("the expansion saved a tensor")


@EVERY
def test_autocast_changes_nothing(factor: Factor, source: Coefficients | None, copies: Copies | None) -> None:
    expansion, start = build(factor, source, copies)
    numbers = random(start, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = expansion(numbers)
    assert torch.equal(inside, expansion(numbers))


@EVERY
def test_the_count_of_numbers_is_within_its_bounds(
    factor: Factor, source: Coefficients | None, copies: Copies | None
) -> None:
    _, start = build(factor, source, copies)
    low, high = parameter_bounds(factor, source, copies, len(SITES))
    assert low <= start.numel() <= high
    if source or copies is None or copies.masks == "partition":
        assert low == high
    if source is None and copies is not None and not factor.frozen:
        union = 0
        for site in SITES:
            of_site = (SEED, site, factor.name)
            union += int(naive_reader.masks(method_of(source, copies), of_site, factor.size).any(axis=0).sum())
        assert start.numel() == union


@EVERY
def test_words_used(factor: Factor, source: Coefficients | None, copies: Copies | None) -> None:
    assert words_used(factor, source, copies) == naive_reader.streams_read(
        method_of(source, copies), factor.init, factor.size
    )


@EVERY
def test_nothing_drawn_is_a_parameter_or_saved(
    factor: Factor, source: Coefficients | None, copies: Copies | None
) -> None:
    expansion, _ = build(factor, source, copies)
    assert list(expansion.parameters()) == []
    assert expansion.state_dict() == {}


# What sites share, and what is not copied


def test_a_frozen_factor_belongs_to_no_site_and_trains_nothing() -> None:
    expansion, start = build(FROZEN, None, None)
    other, _ = Expansion.build(FROZEN, [Streams(SEED, "elsewhere", FROZEN.name)], None, None)
    drawn = expansion(start)
    assert start.numel() == 0
    assert torch.equal(drawn, other(start).expand_as(drawn))
    assert parameter_bounds(FROZEN, None, COPIES["d=2"], len(SITES)) == (0, 0)


def test_the_masks_of_a_frozen_factor_belong_to_its_sites() -> None:
    expansion, start = build(FROZEN, None, COPIES["d=2"])
    first, second, _ = (expansion(start) != 0).unbind()
    assert not torch.equal(first, second)


@pytest.mark.parametrize("basis", BASES)
def test_shared_coefficients_are_one_row_and_give_every_site_its_own_factor(basis: str) -> None:
    expansion, start = build(DOWN, SOURCES[f"{basis}-shared"], None)
    assert start.shape == (1, 4)
    assert parameter_bounds(DOWN, SOURCES[f"{basis}-shared"], None, len(SITES)) == (4, 4)
    first, second, _ = expansion(random(start, 1)).unbind()
    assert not torch.allclose(first, second)


def test_a_shared_group_is_an_isometry_of_the_whole_model() -> None:
    expansion, start = build(UP, SOURCES["group-shared"], None)
    numbers = random(start, 1)
    assert expansion(numbers).norm() == pytest.approx(numbers.norm())


@pytest.mark.parametrize("copies", [Copies(4, 0.25, "random", "variance"), Copies(4, 0.25, "partition", "variance")])
def test_rescaled_masks_keep_the_variance(copies: Copies) -> None:
    wide = Factor("down", (100, 400), 0, "uniform", 400)
    expansion, start = Expansion.build(wide, [Streams(SEED, "h.0", "down")], None, copies)
    assert expansion(start).square().mean().item() == pytest.approx(1 / 3 / 400, rel=0.03)


def test_what_has_no_hidden_axis_is_not_copied() -> None:
    with pytest.raises(AssertionError, match="no hidden axis"):
        build(OUTER, None, COPIES["d=2"])
