"""Laws of the maps from trainable parameters to factors, over every source and every kind of copies at once."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import naive_reader
import numpy as np
import pytest
import torch
from tiny_factors import COPIES, DOWN, FROZEN, INNER, OUTER, SEED, SITES, SOURCES, UP, build, random

from capaft.factors.capaboost import Copies
from capaft.factors.expansion import Expansion, parameter_bounds, words_used
from capaft.factors.factor import Factor
from capaft.factors.nola import Coefficients
from capaft.factors.rng import Streams

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


def method_of(source: Coefficients | None, copies: Copies | None) -> dict[str, Any]:
    """The same stack as an adapter file records it."""
    method: dict[str, Any] = {"k": [source.k] * 2, "basis": source.basis} if source else {}
    if copies:
        method |= {"copies": copies.copies, "density": copies.density, "masks": copies.masks}
    return method


def rescaled(copies: Copies | None) -> float:
    return 1 / math.sqrt(copies.density) if copies and copies.rescale == "variance" else 1


def theta0(factor: Factor, site: str) -> Any:
    of_site = (SEED, "" if factor.frozen else site, factor.name)
    return naive_reader.theta0(factor.init, of_site, factor.size, factor.fan_in)


class Naive:
    """The map as matrices: `factors = offset + matrix @ parameters`, both for all sites and copies, flat."""

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
        # Each site's own parameters are separate columns; shared ones are the same columns for all sites.
        shared = source is not None and source.scope == "model"
        self.matrix = np.concatenate(blocks) if shared else block_diagonal(blocks)
        self.offset = np.concatenate(offsets)

    @staticmethod
    def widen(factor: Factor, masks: Any, columns: Any) -> Any:
        """Put masked copies side by side along the hidden axis, for each column of `(n, columns)`."""
        copies = [(mask[:, None] * columns).reshape(*factor.shape, columns.shape[1]) for mask in masks]
        return np.concatenate(copies, axis=factor.hidden_axis).reshape(len(masks) * factor.size, columns.shape[1])


def block_diagonal(blocks: list[Any]) -> Any:
    rows, columns = ([0, *np.cumsum([block.shape[axis] for block in blocks])] for axis in (0, 1))
    matrix = np.zeros((rows[-1], columns[-1]))
    for index, block in enumerate(blocks):
        matrix[rows[index] : rows[index + 1], columns[index] : columns[index + 1]] = block
    return matrix


# Laws


@EVERY
def test_expand_equals_naive_loops(factor: Factor, source: Coefficients | None, copies: Copies | None) -> None:
    expansion, start = build(factor, source, copies)
    naive = Naive(factor, source, copies)
    parameters = random(start, 1)
    factors = expansion(parameters)
    width = list(factor.shape)
    if factor.hidden_axis is not None:
        width[factor.hidden_axis] *= copies.copies if copies else 1
    assert factors.shape == (len(SITES), *width)
    assert factors.dtype == torch.float32
    expected = naive.offset + naive.matrix @ parameters.flatten().double().numpy()
    np.testing.assert_allclose(factors.flatten().numpy(), expected, rtol=1e-5, atol=1e-5)


@EVERY
def test_training_starts_from_theta0(factor: Factor, source: Coefficients | None, copies: Copies | None) -> None:
    expansion, start = build(factor, source, copies)
    method = method_of(source, copies)
    factors = expansion(start)
    for row, site in enumerate(SITES):
        masks = naive_reader.masks(method, (SEED, site, factor.name), factor.size) * rescaled(copies)
        expected = Naive.widen(factor, masks, theta0(factor, site)[:, None]).flatten()
        if rescaled(copies) == 1:
            assert factors[row].flatten().tolist() == expected.tolist()
        np.testing.assert_allclose(factors[row].flatten().numpy(), expected, rtol=1e-6)


@EVERY
def test_gradients_equal_naive_ones(factor: Factor, source: Coefficients | None, copies: Copies | None) -> None:
    expansion, start = build(factor, source, copies)
    parameters = random(start, 1).requires_grad_()
    factors = expansion(parameters)
    weights = random(factors, 2)
    (factors.square() * weights).sum().backward()
    naive = Naive(factor, source, copies)
    inside = naive.offset + naive.matrix @ parameters.detach().flatten().double().numpy()
    expected = naive.matrix.T @ (2 * inside * weights.flatten().double().numpy())
    assert parameters.grad is not None
    np.testing.assert_allclose(
        parameters.grad.flatten().numpy(), expected, rtol=1e-4, atol=1e-5 * abs(expected).max(initial=0)
    )


@EVERY
def test_gradients_pass_through_again(factor: Factor, source: Coefficients | None, copies: Copies | None) -> None:
    expansion, start = build(factor, source, copies)
    parameters = random(start, 1).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(_refuse, _refuse):
        factors = expansion(parameters)
    weights = random(factors, 2)
    (first,) = torch.autograd.grad(factors, parameters, weights, retain_graph=True)
    (second,) = torch.autograd.grad(factors, parameters, weights)
    # Nothing is saved, so neither a freed graph nor parameters changed in place are in the way.
    with torch.no_grad():
        parameters.add_(1)
    (third,) = torch.autograd.grad(factors, parameters, weights)
    assert torch.equal(first, second)
    assert torch.equal(first, third)


def _refuse(tensor: Any) -> Any:
    raise AssertionError("the expansion saved a tensor")


@EVERY
def test_autocast_changes_nothing(factor: Factor, source: Coefficients | None, copies: Copies | None) -> None:
    expansion, start = build(factor, source, copies)
    parameters = random(start, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = expansion(parameters)
    assert torch.equal(inside, expansion(parameters))


@EVERY
def test_the_parameter_count_is_within_its_bounds(
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


# Frozen factors


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
