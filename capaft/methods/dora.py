"""DoRA: LoRA for the direction of a weight, and a trained magnitude for each output.

Liu et al. 2024, arXiv 2402.09353, eq. 5: `W' = m (W + dW) / ||W + dW||`, with the norm of each output's row and, as in
their section 4.3, without its gradient. The magnitude is trained as its difference from the base weight's, so that it
starts at 0 like any other factor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from capaft.factors.factor import Factor
from capaft.methods.host import Host, check_number, check_whole
from capaft.model.site import Site, stored_parameter
from capaft.model.targets import Targets
from capaft.support.errors import UsageError


@dataclass(frozen=True)
class Dora(Host):
    """DoRA.

    Attributes:
        rank: r, the hidden width before copies.
        alpha: the directional update is multiplied by alpha / rank; None means twice the rank.
    """

    name: ClassVar[str] = "dora"
    summary: ClassVar[str] = "a low-rank update of each weight's direction, and a magnitude for each output"
    equation: ClassVar[str] = "y = m (W + (alpha/r) U D) x / ||W + (alpha/r) U D||"
    paper: ClassVar[str] = "arXiv 2402.09353"
    tuned_parameters: ClassVar[int] = 78_336
    size: ClassVar[str] = "rank"
    default_targets: ClassVar[str] = "qv"
    drops: ClassVar[bool] = True

    rank: int = 8
    alpha: float | None = None

    def __post_init__(self) -> None:
        check_whole("rank", self.rank)
        object.__setattr__(self, "alpha", check_number("alpha", 2.0 * self.rank if self.alpha is None else self.alpha))

    @property
    def scale(self) -> float:
        """Alpha / rank, whatever the number of copies."""
        assert self.alpha is not None
        return self.alpha / self.rank

    def scale_at(self, site: Site) -> float:
        """The scale of one site, which is that of all."""
        return self.scale

    def sites(self, model: nn.Module, targets: Targets, rename: dict[str, str] | None) -> tuple[Site, ...]:
        """See `Host.sites`.

        Raises:
            UsageError: no layer matches the targets, or one is quantised, so that its norms are not available.
        """
        sites = super().sites(model, targets, rename)
        for site in sites:
            if site.is_quantised(model):
                raise UsageError(f"dora needs the norms of {site.module}, which is quantised; choose lora")
        return sites

    def factors(self, site: Site) -> tuple[Factor, ...]:
        """See `Host.factors`."""
        fan_in = 1 if site.kind == "embedding" else site.in_features
        return (
            Factor("down", (self.rank, site.in_features), 0, "uniform", fan_in),
            Factor("up", (site.out_features, self.rank), 1),
            Factor("magnitude", (site.out_features,), None),
        )

    def forward(
        self, site: Site, module: nn.Module, inputs: Tensor, output: Tensor, factors: tuple[Tensor, ...]
    ) -> Tensor:
        """See `Host.forward`."""
        down, up, _ = factors
        weight = stored_parameter(module, "weight")
        with torch.autocast(output.device.type, enabled=False):
            ratio = self._ratio(site.matrix(weight), factors).to(output.dtype)
        bias = getattr(module, "bias", None)
        if bias is not None and site.rows:
            bias = site.rows.take(bias, 0)
        product = output if bias is None else output - bias
        return output + (ratio - 1) * product + ratio * self.scale * F.linear(F.linear(inputs, down), up)

    def merged(
        self, site: Site, weight: Tensor, bias: Tensor | None, factors: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor | None]:
        """See `Host.merged`."""
        down, up, _ = factors
        return self._ratio(weight, factors)[:, None].to(weight.dtype) * weight.addmm(up, down, alpha=self.scale), bias

    def rows_of(self, site: Site, factors: tuple[Tensor, ...], start: int, stop: int) -> tuple[Tensor, ...]:
        """See `Host.rows_of`."""
        down, up, magnitude = factors
        return down, up[start:stop], magnitude[start:stop]

    def product(self, site: Site, factors: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """See `Host.product`. This is the update of the direction, before normalisation."""
        down, up, _ = factors
        return self.scale * up, down

    def _ratio(self, weight: Tensor, factors: tuple[Tensor, ...]) -> Tensor:
        """`m / ||W + dW||` for each output, `(out,)`, in float32 or better.

        `||W + dW||^2 = ||W||^2 + 2 <W, dW> + ||dW||^2` row by row, from the factors: `dW` is never formed.
        """
        exact = torch.promote_types(weight.dtype, torch.float32)
        weight, (down, up, magnitude) = weight.detach().to(exact), (factor.to(exact) for factor in factors)
        base = weight.square().sum(1)
        with torch.no_grad():
            cross = 2 * self.scale * ((weight @ down.T) * up).sum(1)
            square = self.scale**2 * ((up @ (down @ down.T)) * up).sum(1)
            tiny = torch.finfo(exact).tiny
            length = (base + cross + square).clamp_min(tiny).sqrt()
        return (base.clamp_min(tiny).sqrt() + magnitude) / length
