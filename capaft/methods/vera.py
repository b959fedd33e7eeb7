"""VeRA: one frozen random pair of factors for all layers, and two trained vectors for each layer.

Kopiczko et al. 2024, arXiv 2310.11454, eq. 2: `y = W x + b * (U (d * (D x)))`. The frozen pair is shared by all sites
of one shape and drawn from the seed, so it is not part of the file.

CapaBoost masks the pair and not `d`, which every copy uses whole: `b * sum_j ((U∘M_Uj) (d * ((D∘M_Dj) x)))`. A mask of
`d` would take away as many of the rank-one terms `b * U[:, h] d[h] D[h]` as a copy adds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from capaft.config.choices import VERA_RANK
from capaft.factors.factor import Factor
from capaft.methods.host import check_whole
from capaft.methods.low_rank import LowRank
from capaft.model.site import Site


@dataclass(frozen=True)
class Vera(LowRank):
    """VeRA.

    Attributes:
        rank: r, the hidden width before copies. Only two vectors are trained, so it may be large.
    """

    name: ClassVar[str] = "vera"
    summary: ClassVar[str] = "two trained vectors around a frozen random pair of factors"
    equation: ClassVar[str] = "y = W x + b * (U (d * (D x)))"
    paper: ClassVar[str] = "arXiv 2310.11454"
    size: ClassVar[str] = "rank"
    learning_rate: ClassVar[float] = 1e-1
    tuned_parameters: ClassVar[int] = 7_680

    rank: int = VERA_RANK

    def __post_init__(self) -> None:
        check_whole("rank", self.rank)

    def factors(self, site: Site) -> tuple[Factor, ...]:
        """See `Host.factors`. `d` starts at 0.1 and `b` at 0, as in the paper."""
        fan_in = 1 if site.kind == "embedding" else site.in_features
        return (
            Factor("down", (self.rank, site.in_features), 0, "uniform", fan_in, frozen=True),
            Factor("up", (site.out_features, self.rank), 1, "uniform", self.rank, frozen=True),
            Factor("inner", (self.rank,), None, 0.1),
            Factor("outer", (site.out_features,), None),
        )

    def rows_of(self, site: Site, factors: tuple[Tensor, ...], start: int, stop: int) -> tuple[Tensor, ...]:
        """See `Host.rows_of`."""
        down, up, inner, outer = factors
        return down, up[start:stop], inner, outer[start:stop]

    def update(self, site: Site, factors: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, float]:
        """See `LowRank.update`."""
        down, up, inner, outer = factors
        copies = len(down) // self.rank
        return outer[:, None] * up, inner.repeat(copies)[:, None] * down, 1.0
