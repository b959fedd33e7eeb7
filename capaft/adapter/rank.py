"""Measure the rank that an adapter really has: the spectrum of each site's update, from its factors alone.

`dW = left @ right` has the singular values of the small core `R_left R_right^T`, where `left = Q_left R_left` and
`right^T = Q_right R_right`; the `(out, in)` update is never formed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from capaft.adapter.activation import get_adapter
from capaft.support.errors import UsageError


@dataclass(frozen=True)
class SiteRank:
    """The rank report of one site.

    Attributes:
        site: canonical path.
        rank: configured rank r.
        hidden_width: width of the bottleneck, d * r with copies.
        numerical_rank: singular values above `max(out, in) * eps(float32)` of the largest.
        effective_rank: exponential of the entropy of the singular values, normalised to sum 1 (Roy & Vetterli 2007,
            "The effective rank").
        stable_rank: squared Frobenius norm over squared spectral norm.
        top_r_energy: share of the squared Frobenius norm in the r largest singular values.
        delta_norm: Frobenius norm of the update.
        relative_norm: that norm over the Frobenius norm of the base weight; None if that is not a weight, or 0.
        spectrum: the singular values, descending.
    """

    site: str
    rank: int
    hidden_width: int
    numerical_rank: int
    effective_rank: float
    stable_rank: float
    top_r_energy: float
    delta_norm: float
    relative_norm: float | None
    spectrum: tuple[float, ...]

    def record(self) -> dict[str, Any]:
        """The report as plain values, without the spectrum."""
        return {key: value for key, value in asdict(self).items() if key != "spectrum"}


def singular_values(left: Tensor, right: Tensor) -> Tensor:
    """Singular values of `left @ right`, descending, float64, from QR of the two factors.

    Args:
        left: `(out, hidden)`.
        right: `(hidden, in)`.
    """
    left_r = torch.linalg.qr(left.double(), mode="r").R
    right_r = torch.linalg.qr(right.double().T, mode="r").R
    return torch.linalg.svdvals(left_r @ right_r.T)


def inspect_ranks(model: nn.Module, name: str = "default") -> list[SiteRank]:
    """The rank report of every site of an adapter.

    Raises:
        UsageError: the model has no adapter of this name, or its method has no low-rank update.
    """
    adapter = get_adapter(model, name)
    host = adapter.plan.stack.host
    reports = []
    for site, factors in adapter.factors_of_sites():
        product = host.product(site, factors) if host else None
        if host is None or product is None:
            break
        left, right = product
        values = singular_values(left.cpu(), right.cpu())
        rank = host.factors(site)[0].shape[0]
        norm = float(torch.linalg.matrix_norm(site.weight(model).detach().float())) if site.parameter else None
        reports.append(_report(site.path, rank, right.shape[0], values, (len(left), right.shape[1]), norm))
    if not reports:
        raise UsageError(f"method {adapter.plan.stack.method} has no low-rank update to inspect")
    return reports


def summarise_ranks(reports: list[SiteRank]) -> dict[str, Any]:
    """Means over the sites, and the extremes of the numerical rank."""
    names = ["effective_rank", "stable_rank", "top_r_energy", "delta_norm"]
    if all(report.relative_norm is not None for report in reports):
        names.append("relative_norm")
    means = {f"mean_{name}": sum(getattr(r, name) for r in reports) / len(reports) for name in names}
    ranks = [r.numerical_rank for r in reports]
    return {"sites": len(reports), "min_numerical_rank": min(ranks), "max_numerical_rank": max(ranks)} | means


def _report(
    site: str, rank: int, hidden: int, values: Tensor, shape: tuple[int, int], weight_norm: float | None
) -> SiteRank:
    energy = values.square()
    total, largest = float(energy.sum()), float(values.max())
    relative = total**0.5 / weight_norm if weight_norm else None
    if total == 0:
        return SiteRank(site, rank, hidden, 0, 0.0, 0.0, 0.0, 0.0, relative, tuple(values.tolist()))
    share = values / values.sum()
    entropy = -float(torch.special.xlogy(share, share).sum())
    norm = total**0.5
    return SiteRank(
        site=site,
        rank=rank,
        hidden_width=hidden,
        numerical_rank=int((values > max(shape) * torch.finfo(torch.float32).eps * largest).sum()),
        effective_rank=float(torch.tensor(entropy, dtype=torch.float64, device="cpu").exp()),
        stable_rank=total / largest**2,
        top_r_energy=float(energy[:rank].sum()) / total,
        delta_norm=norm,
        relative_norm=relative,
        spectrum=tuple(values.tolist()),
    )
