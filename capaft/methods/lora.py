"""LoRA: `y + (alpha / r) U D x` beside a frozen linear layer (Hu et al. 2021, arXiv 2106.09685, eq. 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from capaft.factor import Factor
from capaft.methods.host import Host
from capaft.sites import Site


@dataclass(frozen=True)
class Lora(Host):
    """LoRA on linear layers.

    Attributes:
        rank: r, the hidden width before copies.
        alpha: the update is multiplied by alpha / rank.
    """

    name: ClassVar[str] = "lora"
    summary: ClassVar[str] = "a low-rank update beside each linear layer"
    equation: ClassVar[str] = "y = W x + (alpha/r) U D x"
    paper: ClassVar[str] = "arXiv 2106.09685"

    rank: int
    alpha: float

    @property
    def scale(self) -> float:
        """Alpha / rank; copies do not enter it."""
        return self.alpha / self.rank

    def factors(self, site: Site) -> tuple[Factor, ...]:
        """See :meth:`Host.factors`."""
        return (
            Factor("down", (self.rank, site.in_features), 0, "uniform", site.in_features),
            Factor("up", (site.out_features, self.rank), 1, "zero", self.rank),
        )

    def forward(self, site: Site, inputs: Tensor, output: Tensor, factors: tuple[Tensor, ...]) -> Tensor:
        """See :meth:`Host.forward`. One `addmm` adds and scales, so no second full-size tensor is made."""
        down, up = factors
        hidden = F.linear(inputs.reshape(-1, inputs.shape[-1]), down)
        flat = output.reshape(-1, output.shape[-1])
        return flat.addmm(hidden, up.T, alpha=self.scale).view(output.shape)

    def product(self, site: Site, factors: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """See :meth:`Host.product`."""
        down, up = factors
        return self.scale * up, down
