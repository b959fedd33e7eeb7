"""A factor of an adapter, and how its numbers come to be.

A host (LoRA, say) asks for factors by their shape. What is trained need not be the factor itself: here live the
linear maps that lead from the trained numbers to the factors a host uses, for all sites that share a shape at once:

    numbers --Dense | Seeded--> factor (hidden width r) --MaskedCopies--> widened factor (hidden width d*r)

Every map is affine and knows its adjoint, so the whole chain is one autograd function that saves no tensors: a
recomputed checkpoint or a second backward may pass through it again, and no basis or mask is kept for autograd.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from capaft import rng
from capaft.basis import BASES, Basis
from capaft.rng import Streams


@dataclass(frozen=True)
class Factor:
    """What a host asks for at one site.

    Attributes:
        name: the factor's role: `down`, `up`, ...
        shape: shape of the numbers before they are copied.
        hidden_axis: the axis that masked copies are concatenated along.
        init: `uniform` draws U(-1, 1) / sqrt(fan_in) from the seed, `zero` starts at 0.
        fan_in: inputs that one output of this factor sums over.
    """

    name: str
    shape: tuple[int, ...]
    hidden_axis: int
    init: Literal["uniform", "zero"]
    fan_in: int

    @cached_property
    def size(self) -> int:
        """How many numbers the factor holds."""
        return math.prod(self.shape)

    def initial(self, streams: Streams) -> NDArray[np.float32]:
        """theta0, flat, shape `(size,)`."""
        if self.init == "zero":
            return np.zeros(self.size, dtype=np.float32)
        return rng.uniform(streams.key("init"), self.size) * np.float32(1 / math.sqrt(self.fan_in))


@dataclass(frozen=True)
class Coefficients:
    """NOLA: a factor is `theta0 + G c`, and `c` is what is trained (arXiv 2310.02556)."""

    k: int
    basis: str


@dataclass(frozen=True)
class Copies:
    """CapaBoost: `copies` uses of one factor, each under its own static random mask (arXiv 2407.01320)."""

    copies: int
    density: float
    masks: Literal["random", "partition"]

    def kept(self, n: int) -> int:
        """How many of n entries a random mask keeps: floor of the exact decimal product."""
        return int(Decimal(repr(self.density)) * n)

    def draw(self, factor: Factor, streams: Streams) -> NDArray[np.bool_]:
        """The masks of one factor, shape `(copies, factor.size)`."""
        if self.masks == "partition":
            owner = rng.buckets(streams.key("mask.partition"), factor.size, self.copies)
            return owner == np.arange(self.copies)[:, None]
        kept = self.kept(factor.size)
        return np.stack([rng.subset(streams.key(f"mask.{j}"), factor.size, kept) for j in range(self.copies)])

    def words_used(self, n: int) -> dict[str, int]:
        """How many words of each purpose's stream the masks of one factor of n numbers read."""
        if self.masks == "partition":
            return {"mask.partition": n}
        return {f"mask.{j}": n for j in range(self.copies)}


def words_used(factor: Factor, coefficients: Coefficients | None, copies: Copies | None) -> dict[str, int]:
    """How many words of each purpose's stream one factor of one site reads."""
    used = {"init": -(-factor.size // 4)} if factor.init == "uniform" else {}
    if coefficients:
        used |= BASES[coefficients.basis].words_used(factor.size, coefficients.k)
    return used | (copies.words_used(factor.size) if copies else {})


def numbers_bounds(factor: Factor, coefficients: Coefficients | None, copies: Copies | None) -> tuple[int, int]:
    """The fewest and the most numbers that one site can train for a factor, without drawing anything."""
    if coefficients:
        return coefficients.k, coefficients.k
    if copies is None or copies.masks == "partition":
        return factor.size, factor.size
    kept = copies.kept(factor.size)
    return kept, min(factor.size, copies.copies * kept)


class Expansion(nn.Module):
    """From the trained numbers of all sites that share one factor shape to their (widened) factors.

    Args:
        shape: `(S, *factor shape)`.
        source: how the numbers make the factors.
        copies: how the factors are widened, or None.
    """

    def __init__(self, shape: tuple[int, ...], source: Seeded | Dense, copies: MaskedCopies | None) -> None:
        super().__init__()
        self.shape = shape
        self.source = source
        self.copies = copies

    @staticmethod
    def build(
        factor: Factor,
        streams: Sequence[Streams],
        coefficients: Coefficients | None,
        copies: Copies | None,
    ) -> tuple[Expansion, Tensor]:
        """Draw everything that is random, and give the map and the numbers that training starts from.

        Args:
            factor: the factor that the sites share.
            streams: the seeded streams of each site's factor, length S.
            coefficients: NOLA's numbers, or None when the factor's own entries are trained.
            copies: CapaBoost's numbers, or None.

        Returns:
            The map, and its initial numbers: zeros `(S, k)` for NOLA, the kept entries of theta0, flat, otherwise.
        """
        initial = torch.from_numpy(np.stack([factor.initial(site) for site in streams]))
        masks = np.stack([copies.draw(factor, site) for site in streams]) if copies else None
        shape = (len(streams), *factor.shape)
        widened = MaskedCopies(factor, masks) if masks is not None else None
        if coefficients:
            basis = BASES[coefficients.basis](streams, factor.size, coefficients.k)
            theta0 = initial if factor.init == "uniform" else None
            return Expansion(shape, Seeded(basis, theta0), widened), torch.zeros(len(streams), coefficients.k)
        if masks is None:
            return Expansion(shape, Dense(None), None), initial.flatten()
        kept = torch.from_numpy(np.flatnonzero(masks.any(axis=1)))
        return Expansion(shape, Dense(kept), widened), initial.flatten()[kept]

    def forward(self, numbers: Tensor) -> Tensor:
        """The factors, `(S, *widened shape)`, float32, differentiable in `numbers`."""
        return _Expand.apply(numbers, self)

    def expand(self, numbers: Tensor) -> Tensor:
        """The map itself."""
        factors = self.source.expand(numbers, self.shape)
        return self.copies.expand(factors) if self.copies else factors

    def adjoint(self, gradient: Tensor) -> Tensor:
        """The adjoint of the map's linear part."""
        return self.source.adjoint(self.copies.adjoint(gradient) if self.copies else gradient)


class Dense(nn.Module):
    """The factor's own entries are trained, but for those that no mask keeps: they stay out of the numbers.

    Args:
        kept: flat positions, over all sites, of the entries that some mask keeps; None for all.
    """

    kept: Tensor | None

    def __init__(self, kept: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("kept", kept, persistent=False)

    def expand(self, numbers: Tensor, shape: tuple[int, ...]) -> Tensor:
        """`(total,) -> (S, *factor shape)`."""
        if self.kept is None:
            # Not a view: factors that are kept must not change, nor become unusable, when an optimiser steps.
            return numbers.view(shape).clone()
        return numbers.new_zeros(math.prod(shape)).scatter_(0, self.kept, numbers).view(shape)

    def adjoint(self, gradient: Tensor) -> Tensor:
        """`(S, *factor shape) -> (total,)`."""
        flat = gradient.reshape(-1)
        return flat if self.kept is None else flat.gather(0, self.kept)


class Seeded(nn.Module):
    """NOLA: `theta0 + G c`, theta0 and G from the seed (arXiv 2310.02556).

    Args:
        basis: G.
        theta0: `(S, n)`, or None where it is zero.
    """

    theta0: Tensor | None

    def __init__(self, basis: Basis, theta0: Tensor | None) -> None:
        super().__init__()
        self.basis = basis
        self.register_buffer("theta0", theta0, persistent=False)

    def expand(self, numbers: Tensor, shape: tuple[int, ...]) -> Tensor:
        """`(S, k) -> (S, *factor shape)`."""
        combined = self.basis.expand(numbers)
        return (combined if self.theta0 is None else combined + self.theta0).view(shape)

    def adjoint(self, gradient: Tensor) -> Tensor:
        """`(S, *factor shape) -> (S, k)`."""
        return self.basis.adjoint(gradient.reshape(len(gradient), -1))


class MaskedCopies(nn.Module):
    """CapaBoost: masked copies of a factor, concatenated along its hidden axis.

    `sum_j (U∘M_Uj) phi((D∘M_Dj) x)` is one bottleneck of hidden width d*r, whatever phi is, so a host never
    knows (arXiv 2407.01320).

    Args:
        factor: the factor that is copied.
        masks: `(S, d, n)`.
    """

    masks: Tensor

    def __init__(self, factor: Factor, masks: NDArray[np.bool_]) -> None:
        super().__init__()
        sites, copies, _ = masks.shape
        # The copies' axis stands just before the hidden axis, so that widening is a view and not a transposition.
        self.axis = 1 + factor.hidden_axis
        shaped = torch.from_numpy(masks).view(sites, copies, *factor.shape).movedim(1, self.axis)
        self.register_buffer("masks", shaped.contiguous(), persistent=False)

    def expand(self, factors: Tensor) -> Tensor:
        """`(S, .., r, ..) -> (S, .., d*r, ..)`."""
        return (factors.unsqueeze(self.axis) * self.masks).flatten(self.axis, self.axis + 1)

    def adjoint(self, gradient: Tensor) -> Tensor:
        """`(S, .., d*r, ..) -> (S, .., r, ..)`."""
        return (gradient.reshape(self.masks.shape) * self.masks).sum(self.axis)


class _Expand(torch.autograd.Function):
    """An affine map as one autograd node that saves no tensors."""

    @staticmethod
    def forward(ctx: Any, numbers: Tensor, expansion: Expansion) -> Tensor:
        ctx.expansion = expansion
        with torch.autocast(numbers.device.type, enabled=False):
            return expansion.expand(numbers)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        with torch.autocast(gradient.device.type, enabled=False):
            return ctx.expansion.adjoint(gradient), None
