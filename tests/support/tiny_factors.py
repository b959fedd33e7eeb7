"""Small factors and the options of NOLA and CapaBoost, for tests of the maps that make factors."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from capaft.factors.basis import BASES
from capaft.factors.capaboost import Copies
from capaft.factors.expansion import Expansion
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


def streams(factor: Factor) -> list[Streams]:
    return [Streams(SEED, site, factor.name) for site in SITES]


def build(factor: Factor, source: Coefficients | None, copies: Copies | None) -> tuple[Expansion, Tensor]:
    expansion, start = Expansion.build(factor, streams(factor), source, copies)
    if isinstance(expansion.source, Seeded) and expansion.source.shared:
        expansion.source.basis.settle([expansion.source.basis])
    return expansion, start


def random(like: Tensor, seed: int) -> Tensor:
    draw = np.random.default_rng(seed).standard_normal(tuple(like.shape))
    return torch.from_numpy(draw.astype(np.float32))
