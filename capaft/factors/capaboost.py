"""CapaBoost: one shared factor, used d times under d static random masks (arXiv 2407.01320).

`dW = s * sum_j (U∘M_Uj)(D∘M_Dj)`: the rank grows from r to d*r; the parameter count does not. The sum over masked
copies is one bottleneck d times as wide, so no host method needs to know about the copies.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from capaft.config.choices import MASK_RESCALE, MaskRescale, Masks
from capaft.factors import rng
from capaft.factors.factor import Factor
from capaft.factors.rng import Streams


@dataclass(frozen=True)
class Copies:
    """Options of CapaBoost: `copies` uses of one factor, each under its own static random mask (arXiv 2407.01320).

    Attributes:
        copies: d, the number of masked copies.
        density: share of the entries that a random mask keeps.
        masks: `random` masks keep this share; `partition` masks give each entry to exactly one copy.
        rescale: `variance` multiplies the copies so that masking keeps the factor's variance; `none` does not.
    """

    copies: int
    density: float
    masks: Masks
    rescale: MaskRescale = MASK_RESCALE

    @property
    def scale(self) -> float:
        """Scale of the masked copies; with `variance` they keep the variance of the unmasked factor."""
        return 1.0 if self.rescale == "none" else 1 / math.sqrt(self.density)

    def kept(self, n: int) -> int:
        """Number of entries out of n that a random mask keeps: the floor of the exact decimal product."""
        return int(Decimal(repr(self.density)) * n)

    def draw(self, factor: Factor, streams: Streams) -> NDArray[np.bool_]:
        """The masks of one factor, shape `(copies, factor.size)`."""
        if self.masks == "partition":
            owner = rng.buckets(streams.key("mask.partition"), factor.size, self.copies)
            return owner == np.arange(self.copies)[:, None]
        kept = self.kept(factor.size)
        return np.stack([rng.subset(streams.key(f"mask.{j}"), factor.size, kept) for j in range(self.copies)])

    def words_used(self, n: int) -> dict[str, int]:
        """Number of words that the masks of one factor with n entries read from the stream of each purpose."""
        if self.masks == "partition":
            return {"mask.partition": n}
        return {f"mask.{j}": n for j in range(self.copies)}


class MaskedCopies(nn.Module):
    """CapaBoost's map: masked copies of a factor, concatenated along its hidden axis (arXiv 2407.01320).

    `sum_j (U∘M_Uj) phi((D∘M_Dj) x)` is one bottleneck of hidden width d*r, whatever phi is.

    Args:
        factor: the factor to copy.
        masks: `(S, d, n)`.
        scale: scale of the copies.
    """

    masks: Tensor

    def __init__(self, factor: Factor, masks: NDArray[np.bool_], scale: float) -> None:
        super().__init__()
        assert factor.hidden_axis is not None, "a factor with no hidden axis cannot be copied"
        self.scale = scale
        sites, copies, _ = masks.shape
        # The axis of the copies comes just before the hidden axis, so that widening is a view and not a transposition.
        axis = 1 + factor.hidden_axis
        shaped = torch.from_numpy(masks).view(sites, copies, *factor.shape).movedim(1, axis)
        # Counted from the end, since adapters of one seed may have an axis in front.
        self.axis = axis - shaped.ndim
        self.register_buffer("masks", shaped.contiguous(), persistent=False)

    def expand(self, factors: Tensor) -> Tensor:
        """`(..., S, .., r, ..) -> (..., S, .., d*r, ..)`."""
        wide = (factors.unsqueeze(self.axis) * self.masks).flatten(self.axis, self.axis + 1)
        return wide if self.scale == 1 else wide * self.scale

    def expand_site(self, factor: Tensor, index: int) -> Tensor:
        """The same for one of the sites: `(1, .., r, ..) -> (1, .., d*r, ..)`."""
        wide = (factor.unsqueeze(self.axis) * self.masks[index : index + 1]).flatten(self.axis, self.axis + 1)
        return wide if self.scale == 1 else wide * self.scale

    def adjoint(self, gradient: Tensor) -> Tensor:
        """`(S, .., d*r, ..) -> (S, .., r, ..)`."""
        narrow = (gradient.reshape(self.masks.shape) * self.masks).sum(self.axis)
        return narrow if self.scale == 1 else narrow * self.scale
