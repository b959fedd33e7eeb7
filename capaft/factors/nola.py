"""NOLA: a factor is `theta0 + G c`; only the coefficients `c` are trained and stored (arXiv 2310.02556, eq. 3).

`theta0` and the random basis `G` (`factors.basis`) come from the seed, so a factor of any size takes only `k`
coefficients in the adapter file.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from capaft.config.choices import SCOPE, BasisName, Scope
from capaft.factors.basis import Basis


@dataclass(frozen=True)
class Coefficients:
    """Options of NOLA for one factor, `theta0 + G c` with trained coefficients `c` (arXiv 2310.02556).

    Attributes:
        k: number of coefficients.
        basis: kind of G.
        scope: `site` gives each site its own `c`; with `model` all sites share one `c`, each under its own basis.
    """

    k: int
    basis: BasisName
    scope: Scope = SCOPE


class Seeded(nn.Module):
    """NOLA's map `theta0 + G c`, with theta0 and G from the seed (arXiv 2310.02556).

    Args:
        basis: G.
        theta0: `(S, n)`, or None if it is zero.
        shared: True if all sites share one `c`.
    """

    theta0: Tensor | None

    def __init__(self, basis: Basis, theta0: Tensor | None, shared: bool) -> None:
        super().__init__()
        self.basis = basis
        self.shared = shared
        self.register_buffer("theta0", theta0, persistent=False)

    def expand(self, coefficients: Tensor, shape: tuple[int, ...]) -> Tensor:
        """`(..., S, k) -> (..., S, *factor shape)`, or from `(..., 1, k)` if `c` is shared."""
        adapters = coefficients.shape[:-2]
        combined = self.basis.expand(coefficients.expand(*adapters, shape[0], -1))
        return (combined if self.theta0 is None else combined + self.theta0).view(*adapters, *shape)

    def of_site(self, index: int) -> Seeded:
        """The map of one of the sites alone."""
        theta0 = None if self.theta0 is None else self.theta0[index : index + 1]
        return Seeded(self.basis.of_site(index), theta0, self.shared)

    def adjoint(self, gradient: Tensor) -> Tensor:
        """`(S, *factor shape) -> (S, k)`, or to `(1, k)` if `c` is shared."""
        by_site = self.basis.adjoint(gradient.reshape(len(gradient), -1))
        return by_site.sum(0, keepdim=True) if self.shared else by_site
