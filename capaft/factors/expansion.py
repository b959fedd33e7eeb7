"""Maps from the trainable parameters to the factors that a host uses, for all sites that share a shape at once.

    parameters --Dense | Seeded | Frozen--> factor (hidden width r) --MaskedCopies--> widened factor (hidden width d*r)

`Seeded` is NOLA's map (`factors.nola`), `MaskedCopies` CapaBoost's (`factors.capaboost`). Every map is affine and knows
its adjoint, so the whole chain is one autograd function that saves no tensors: a recomputed checkpoint or a second
backward pass may go through it again, and no basis or mask is kept for autograd.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from capaft.factors.basis import BASES
from capaft.factors.capaboost import Copies, MaskedCopies
from capaft.factors.factor import Factor
from capaft.factors.nola import Coefficients, Seeded
from capaft.factors.rng import Streams


def words_used(factor: Factor, coefficients: Coefficients | None, copies: Copies | None) -> dict[str, int]:
    """Number of words that one factor of one site reads from the stream of each purpose."""
    used = {"init": -(-factor.size // 4)} if isinstance(factor.init, str) else {}
    if coefficients:
        used |= BASES[coefficients.basis].words_used(factor.size, coefficients.k)
    return used | (copies.words_used(factor.size) if copies else {})


def parameter_bounds(
    factor: Factor, coefficients: Coefficients | None, copies: Copies | None, sites: int = 1
) -> tuple[int, int]:
    """The fewest and the most parameters that this many sites can train for a factor, without drawing anything.

    Coefficients that the whole model shares count once.
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


def entries_made(factor: Factor, coefficients: Coefficients | None, copies: Copies | None, sites: int = 1) -> int:
    """Entries that coefficients, copies and the seed make of a factor at this many sites; 0 if all are trained."""
    if coefficients is None and copies is None:
        return factor.size if factor.frozen else 0
    transform = BASES[coefficients.basis].room(factor.size, coefficients.k) if coefficients else 0
    return sites * max(transform, factor.size * (copies.copies if copies else 1))


class Expansion(nn.Module):
    """Map from the trainable parameters of all sites that share one factor shape to their (widened) factors.

    Args:
        shape: `(S, *factor shape)`.
        source: the map from the parameters to the factors.
        copies: the map that widens the factors, or None.
        start: initial values of the parameters: zeros `(S, k)` for NOLA, `(1, k)` if the whole model shares them;
            the kept entries of theta0, flat, for a dense factor; empty for a frozen one.
    """

    def __init__(
        self, shape: tuple[int, ...], source: Seeded | Dense | Frozen, copies: MaskedCopies | None, start: Tensor
    ) -> None:
        super().__init__()
        self.shape = shape
        self.source = source
        self.copies = copies
        self.parameters_shape = tuple(start.shape)

    @staticmethod
    def build(
        factor: Factor,
        streams: Sequence[Streams],
        coefficients: Coefficients | None,
        copies: Copies | None,
    ) -> tuple[Expansion, Tensor]:
        """Draw everything that is random, and return the map and the initial values of its parameters.

        Args:
            factor: the factor that the sites share.
            streams: the seeded streams of each site's factor, length S.
            coefficients: NOLA's options, or None if the factor's own entries are trained.
            copies: CapaBoost's options, or None.
        """
        masks = np.stack([copies.draw(factor, site) for site in streams]) if copies else None
        widened = MaskedCopies(factor, masks, copies.scale) if copies and masks is not None else None
        shape = (len(streams), *factor.shape)
        source: Seeded | Dense | Frozen
        if factor.frozen:
            source, start = Frozen(torch.from_numpy(factor.initial(streams[0]))), _zeros(0)
            return Expansion(shape, source, widened, start), start
        initial = torch.from_numpy(np.stack([factor.initial(site) for site in streams]))
        if coefficients:
            basis = BASES[coefficients.basis](streams, factor.size, coefficients.k)
            shared = coefficients.scope == "model"
            if not shared:
                basis.settle(None)
            start = _zeros(1 if shared else len(streams), coefficients.k)
            source = Seeded(basis, initial if factor.init else None, shared)
        elif masks is None:
            source, start = Dense(None), initial.flatten()
        else:
            kept = torch.from_numpy(np.flatnonzero(masks.any(axis=1)))
            source, start = Dense(kept), initial.flatten()[kept]
        return Expansion(shape, source, widened, start), start

    def forward(self, parameters: Tensor) -> Tensor:
        """The factors, `(S, *widened shape)`, float32, differentiable in `parameters`."""
        return _Expand.apply(parameters, self)

    def expand(self, parameters: Tensor) -> Tensor:
        """The map itself, of one adapter, or of many with an axis for them in front: `(..., *parameters shape)`."""
        factors = self.source.expand(parameters, self.shape)
        return self.copies.expand(factors) if self.copies else factors

    def expand_site(self, parameters: Tensor, index: int) -> Tensor:
        """The factor of one of the sites alone, from the parameters of all, without gradient: the widened shape."""
        shape, source = (1, *self.shape[1:]), self.source
        match source:
            case Seeded():
                coefficients = parameters if source.shared else parameters[index : index + 1]
                factor = source.of_site(index).expand(coefficients, shape)
            case Dense():
                factor = source.expand_site(parameters, index, shape)
            case Frozen():
                factor = source.expand(parameters, shape)
        return (self.copies.expand_site(factor, index) if self.copies else factor)[0]

    def adjoint(self, gradient: Tensor) -> Tensor:
        """The adjoint of the map's linear part."""
        return self.source.adjoint(self.copies.adjoint(gradient) if self.copies else gradient)


class Dense(nn.Module):
    """Map from the factor's own entries to the factor; entries that no mask keeps are not among the parameters.

    Args:
        kept: flat positions, over all sites, of the entries that some mask keeps; None for all.
    """

    kept: Tensor | None

    def __init__(self, kept: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("kept", kept, persistent=False)

    def expand(self, parameters: Tensor, shape: tuple[int, ...]) -> Tensor:
        """`(..., total) -> (..., S, *factor shape)`."""
        adapters = parameters.shape[:-1]
        if self.kept is None:
            # Not a view: a cached factor must neither change nor become unusable at an optimizer step.
            return parameters.view(*adapters, *shape).clone()
        whole = parameters.new_zeros(*adapters, math.prod(shape))
        return whole.scatter_(-1, self.kept.expand(parameters.shape), parameters).view(*adapters, *shape)

    def expand_site(self, parameters: Tensor, index: int, shape: tuple[int, ...]) -> Tensor:
        """The factor of one of the sites alone: `(total,) -> (1, *factor shape)`."""
        size = math.prod(shape)
        if self.kept is None:
            return parameters[index * size : (index + 1) * size].view(shape).clone()
        # The positions ascend, so that those of a site are a run.
        start, stop = torch.searchsorted(self.kept, self.kept.new_tensor([index * size, (index + 1) * size])).tolist()
        entries = parameters.new_zeros(size)
        return entries.scatter_(0, self.kept[start:stop] - index * size, parameters[start:stop]).view(shape)

    def adjoint(self, gradient: Tensor) -> Tensor:
        """`(S, *factor shape) -> (total,)`."""
        flat = gradient.reshape(-1)
        return flat if self.kept is None else flat.gather(0, self.kept)


class Frozen(nn.Module):
    """A factor without parameters: drawn once from the seed, the same for every site.

    Args:
        values: the factor, flat.
    """

    values: Tensor

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.register_buffer("values", values, persistent=False)

    def expand(self, parameters: Tensor, shape: tuple[int, ...]) -> Tensor:
        """`(0,) -> (S, *factor shape)`."""
        return self.values.view(shape[1:]).expand(shape)

    def adjoint(self, gradient: Tensor) -> Tensor:
        """`(S, *factor shape) -> (0,)`."""
        return gradient.new_zeros(0)


def _zeros(*shape: int) -> Tensor:
    """Zeros in float32 in memory, whatever the defaults for new tensors are."""
    return torch.zeros(*shape, dtype=torch.float32, device="cpu")


class _Expand(torch.autograd.Function):
    """An affine map as one autograd node that saves no tensors."""

    @staticmethod
    def forward(ctx: Any, parameters: Tensor, expansion: Expansion) -> Tensor:
        ctx.expansion = expansion
        with torch.autocast(parameters.device.type, enabled=False):
            return expansion.expand(parameters)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        with torch.autocast(gradient.device.type, enabled=False):
            return ctx.expansion.adjoint(gradient), None
