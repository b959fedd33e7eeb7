"""A factor of an adapter, and how its numbers come to be.

A host (LoRA, say) asks for factors by their shape. What is trained need not be the factor itself: here live the
linear maps that lead from the trained numbers to the factors a host uses, for all sites that share a shape at once:

    numbers --Dense | Seeded | Frozen--> factor (hidden width r) --MaskedCopies--> widened factor (hidden width d*r)

Every map is affine and knows its adjoint, so the whole chain is one autograd function that saves no tensors: a
recomputed checkpoint or a second backward may pass through it again, and no basis or mask is kept for autograd.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
        hidden_axis: the axis that masked copies are concatenated along; None where there is none, so never copied.
        init: `uniform` draws U(-1, 1) / sqrt(fan_in) from the seed; a number fills the factor.
        fan_in: inputs that one output of this factor sums over.
        frozen: not trained and not stored; drawn from the seed, the same for all sites of one shape.
    """

    name: str
    shape: tuple[int, ...]
    hidden_axis: int | None
    init: Literal["uniform"] | float = 0.0
    fan_in: int = 1
    frozen: bool = False

    @cached_property
    def size(self) -> int:
        """How many numbers the factor holds."""
        return math.prod(self.shape)

    def initial(self, streams: Streams) -> NDArray[np.float32]:
        """theta0, flat, shape `(size,)`."""
        if not isinstance(self.init, str):
            return np.full(self.size, self.init, dtype=np.float32)
        return rng.uniform(self.origin(streams).key("init"), self.size) * np.float32(1 / math.sqrt(self.fan_in))

    def origin(self, streams: Streams) -> Streams:
        """The streams that theta0 is drawn from: a frozen factor's belong to no site."""
        return replace(streams, site="") if self.frozen else streams


@dataclass(frozen=True)
class Coefficients:
    """NOLA: a factor is `theta0 + G c`, and `c` is what is trained (arXiv 2310.02556).

    With scope `model` all sites share one `c`, each under its own basis.
    """

    k: int
    basis: str
    scope: Literal["site", "model"] = "site"


@dataclass(frozen=True)
class Copies:
    """CapaBoost: `copies` uses of one factor, each under its own static random mask (arXiv 2407.01320)."""

    copies: int
    density: float
    masks: Literal["random", "partition"]
    rescale: Literal["none", "variance"] = "none"

    @property
    def scale(self) -> float:
        """What masked copies are multiplied by; `variance` keeps the variance that the factor has unmasked."""
        return 1.0 if self.rescale == "none" else 1 / math.sqrt(self.density)

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
    used = {"init": -(-factor.size // 4)} if isinstance(factor.init, str) else {}
    if coefficients:
        used |= BASES[coefficients.basis].words_used(factor.size, coefficients.k)
    return used | (copies.words_used(factor.size) if copies else {})


def numbers_bounds(
    factor: Factor, coefficients: Coefficients | None, copies: Copies | None, sites: int = 1
) -> tuple[int, int]:
    """The fewest and the most numbers that so many sites can train for a factor, without drawing anything.

    Coefficients that the whole model shares count as one site's.
    """
    if factor.frozen:
        return 0, 0
    if coefficients:
        count = coefficients.k * (1 if coefficients.scope == "model" else sites)
        return count, count
    if copies is None or copies.masks == "partition":
        return sites * factor.size, sites * factor.size
    kept = copies.kept(factor.size)
    return sites * kept, sites * min(factor.size, copies.copies * kept)


class Expansion(nn.Module):
    """From the trained numbers of all sites that share one factor shape to their (widened) factors.

    Args:
        shape: `(S, *factor shape)`.
        source: how the numbers make the factors.
        copies: how the factors are widened, or None.
        start: the numbers that training starts from: zeros `(S, k)` for NOLA, `(1, k)` where the model shares them;
            the kept entries of theta0, flat, for a dense factor; none for a frozen one.
    """

    def __init__(
        self, shape: tuple[int, ...], source: Seeded | Dense | Frozen, copies: MaskedCopies | None, start: Tensor
    ) -> None:
        super().__init__()
        self.shape = shape
        self.source = source
        self.copies = copies
        self.numbers_shape = tuple(start.shape)

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
        """
        masks = np.stack([copies.draw(factor, site) for site in streams]) if copies else None
        widened = MaskedCopies(factor, masks, copies.scale) if copies and masks is not None else None
        shape = (len(streams), *factor.shape)
        source: Seeded | Dense | Frozen
        if factor.frozen:
            source, start = Frozen(torch.from_numpy(factor.initial(streams[0]))), torch.zeros(0)
            return Expansion(shape, source, widened, start), start
        initial = torch.from_numpy(np.stack([factor.initial(site) for site in streams]))
        if coefficients:
            basis = BASES[coefficients.basis](streams, factor.size, coefficients.k)
            shared = coefficients.scope == "model"
            if not shared:
                basis.settle(None)
            start = torch.zeros(1 if shared else len(streams), coefficients.k)
            source = Seeded(basis, initial if factor.init else None, shared)
        elif masks is None:
            source, start = Dense(None), initial.flatten()
        else:
            kept = torch.from_numpy(np.flatnonzero(masks.any(axis=1)))
            source, start = Dense(kept), initial.flatten()[kept]
        return Expansion(shape, source, widened, start), start

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


class Frozen(nn.Module):
    """A factor that no number makes: drawn once from the seed, the same for every site.

    Args:
        values: flat.
    """

    values: Tensor

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.register_buffer("values", values, persistent=False)

    def expand(self, numbers: Tensor, shape: tuple[int, ...]) -> Tensor:
        """`() -> (S, *factor shape)`."""
        return self.values.view(shape[1:]).expand(shape)

    def adjoint(self, gradient: Tensor) -> Tensor:
        """No numbers, no gradient."""
        return gradient.new_zeros(0)


class MaskedCopies(nn.Module):
    """CapaBoost: masked copies of a factor, concatenated along its hidden axis.

    `sum_j (U∘M_Uj) phi((D∘M_Dj) x)` is one bottleneck of hidden width d*r, whatever phi is, so a host never
    knows (arXiv 2407.01320).

    Args:
        factor: the factor that is copied.
        masks: `(S, d, n)`.
        scale: what the copies are multiplied by.
    """

    masks: Tensor

    def __init__(self, factor: Factor, masks: NDArray[np.bool_], scale: float) -> None:
        super().__init__()
        assert factor.hidden_axis is not None, "what has no hidden axis is not copied"
        self.scale = scale
        sites, copies, _ = masks.shape
        # The copies' axis stands just before the hidden axis, so that widening is a view and not a transposition.
        self.axis = 1 + factor.hidden_axis
        shaped = torch.from_numpy(masks).view(sites, copies, *factor.shape).movedim(1, self.axis)
        self.register_buffer("masks", shaped.contiguous(), persistent=False)

    def expand(self, factors: Tensor) -> Tensor:
        """`(S, .., r, ..) -> (S, .., d*r, ..)`."""
        wide = (factors.unsqueeze(self.axis) * self.masks).flatten(self.axis, self.axis + 1)
        return wide if self.scale == 1 else wide * self.scale

    def adjoint(self, gradient: Tensor) -> Tensor:
        """`(S, .., d*r, ..) -> (S, .., r, ..)`."""
        narrow = (gradient.reshape(self.masks.shape) * self.masks).sum(self.axis)
        return narrow if self.scale == 1 else narrow * self.scale


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
