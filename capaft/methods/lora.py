"""LoRA: `y + (alpha / r) U D x` beside a frozen layer (Hu et al. 2021, arXiv 2106.09685, eq. 3)."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from typing import ClassVar

from torch import Tensor, nn

from capaft.config.choices import RANK
from capaft.factors.factor import Factor
from capaft.methods.host import check_number, check_whole
from capaft.methods.low_rank import LowRank
from capaft.model.site import Site
from capaft.model.targets import MAX_TARGETS, Targets, path_matcher
from capaft.support.errors import UsageError


@dataclass(frozen=True)
class Lora(LowRank):
    """LoRA.

    Attributes:
        rank: r, the hidden width before copies.
        alpha: the update is multiplied by alpha / rank; None means twice the rank.
        rslora: multiply by alpha / sqrt(rank) instead, so that large ranks still learn (Kalajdzievski 2023, arXiv
            2312.03732).
        rank_pattern: ranks of some sites, as `name=rank` or `re:pattern=rank`; the first match counts.
    """

    name: ClassVar[str] = "lora"
    summary: ClassVar[str] = "a low-rank update beside each layer"
    equation: ClassVar[str] = "y = W x + (alpha/r) U D x"
    paper: ClassVar[str] = "arXiv 2106.09685"
    size: ClassVar[str] = "rank"

    rank: int = RANK
    alpha: float | None = None
    rslora: bool = False
    rank_pattern: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        check_whole("rank", self.rank)
        object.__setattr__(self, "alpha", check_number("alpha", 2.0 * self.rank if self.alpha is None else self.alpha))
        if not isinstance(self.rslora, bool):
            raise UsageError(f"--rslora must be true or false, got {self.rslora}")
        if not isinstance(self.rank_pattern, (list, tuple)) or len(str(self.rank_pattern)) > MAX_TARGETS:
            raise UsageError(f"--rank-pattern must be a list of NAME=RANK of at most {MAX_TARGETS} characters")
        object.__setattr__(self, "rank_pattern", tuple(self.rank_pattern))
        for entry in self.rank_pattern:
            word, _, rank = str(entry).rpartition("=")
            if not word or not re.fullmatch("[1-9][0-9]{0,8}", rank):
                raise UsageError(f"--rank-pattern {entry} is not NAME=RANK or re:PATTERN=RANK")
            path_matcher(word, "rank-pattern")

    def sites(self, model: nn.Module, targets: Targets, rename: dict[str, str] | None) -> tuple[Site, ...]:
        """See `Host.sites`. Sites that the rank pattern matches carry their rank.

        Raises:
            UsageError: no layer matches the targets, or an entry of the rank pattern matches none of the sites.
        """
        sites = super().sites(model, targets, rename)
        ranks: dict[str, int] = {}
        for entry in self.rank_pattern:
            word, _, rank = entry.rpartition("=")
            match = path_matcher(word, "rank-pattern")
            matching = [site.path for site in sites if match(site.path.partition("#")[0])]
            if not matching:
                raise UsageError(f"--rank-pattern {entry} matches none of the adapted layers")
            ranks = dict.fromkeys(matching, int(rank)) | ranks
        return tuple(replace(site, rank=ranks.get(site.path)) for site in sites) if ranks else sites

    def rank_at(self, site: Site) -> int:
        """The rank of one site."""
        return self.rank if site.rank is None else site.rank

    def factors(self, site: Site) -> tuple[Factor, ...]:
        """See `Host.factors`. Only one of an embedding's inputs is ever active, so its fan-in is 1."""
        rank = self.rank_at(site)
        fan_in = 1 if site.kind == "embedding" else site.in_features
        return (
            Factor("down", (rank, site.in_features), 0, "uniform", fan_in),
            Factor("up", (site.out_features, rank), 1),
        )

    def rows_of(self, site: Site, factors: tuple[Tensor, ...], start: int, stop: int) -> tuple[Tensor, ...]:
        """See `Host.rows_of`."""
        down, up = factors
        return down, up[start:stop]

    def update(self, site: Site, factors: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, float]:
        """See `LowRank.update`."""
        down, up = factors
        return up, down, self.scale_at(site)

    def scale_at(self, site: Site) -> float:
        """The scale of the update of one site, whatever the number of copies."""
        rank = self.rank_at(site)
        assert self.alpha is not None
        return self.alpha / (math.sqrt(rank) if self.rslora else rank)
