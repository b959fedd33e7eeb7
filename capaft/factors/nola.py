"""NOLA: a factor is `theta0 + G c`; only the coefficients `c` are trained and stored (arXiv 2310.02556, eq. 3).

`theta0` and the random basis `G` (`factors.basis`) come from the seed, so a factor of any size costs `k`
numbers in the adapter file.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from capaft.config.choices import SCOPE, BasisName, Scope
from capaft.factors.basis import Basis


@dataclass(frozen=True)
class Coefficients:
    """NOLA: a factor is `theta0 + G c`, and `c` is what is trained (arXiv 2310.02556).

    With scope `model` all sites share one `c`, each under its own basis.
    """

    k: int
    basis: BasisName
    scope: Scope = SCOPE


class Seeded(nn.Module):
    """NOLA: `theta0 + G c`, theta0 and G from the seed (arXiv 2310.02556).

    Args:
        basis: G.
        theta0: `(S, n)`, or None where it is zero.
        shared: all sites have the one `c`.
    """

    theta0: Tensor | None

    def __init__(self, basis: Basis, theta0: Tensor | None, shared: bool) -> None:
        super().__init__()
        self.basis = basis
        self.shared = shared
        self.register_buffer("theta0", theta0, persistent=False)

    def expand(self, numbers: Tensor, shape: tuple[int, ...]) -> Tensor:
        """`(S, k) -> (S, *factor shape)`, or from `(1, k)` where it is shared."""
        combined = self.basis.expand(numbers.expand(shape[0], -1))
        return (combined if self.theta0 is None else combined + self.theta0).view(shape)

    def adjoint(self, gradient: Tensor) -> Tensor:
        """`(S, *factor shape) -> (S, k)`, or to `(1, k)`."""
        found = self.basis.adjoint(gradient.reshape(len(gradient), -1))
        return found.sum(0, keepdim=True) if self.shared else found
