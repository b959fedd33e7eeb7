"""Coefficients that all sites share."""

from __future__ import annotations

import pytest
import torch
from tiny_factors import DOWN, SITES, SOURCES, UP, build, random

from capaft.factors.basis import BASES
from capaft.factors.expansion import parameter_bounds


@pytest.mark.parametrize("basis", BASES)
def test_shared_coefficients_are_one_row_and_give_every_site_its_own_factor(basis: str) -> None:
    expansion, start = build(DOWN, SOURCES[f"{basis}-shared"], None)
    assert start.shape == (1, 4)
    assert parameter_bounds(DOWN, SOURCES[f"{basis}-shared"], None, len(SITES)) == (4, 4)
    first, second, _ = expansion(random(start, 1)).unbind()
    assert not torch.allclose(first, second)


def test_a_shared_group_is_an_isometry_of_the_whole_model() -> None:
    expansion, start = build(UP, SOURCES["group-shared"], None)
    coefficients = random(start, 1)
    assert expansion(coefficients).norm() == pytest.approx(coefficients.norm())
