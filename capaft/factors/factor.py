"""A factor of an adapter: the shape that a host asks for at one site, and its initial values.

A host (LoRA, say) asks for factors by shape. The trained parameters need not be the factor's own entries; see
`factors.expansion`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from capaft.factors import rng
from capaft.factors.rng import Streams


@dataclass(frozen=True)
class Factor:
    """A factor that a host asks for at one site.

    Attributes:
        name: the factor's role: `down`, `up`, ...
        shape: shape of the factor before it is copied.
        hidden_axis: the axis along which masked copies are concatenated; None for a factor that is never copied.
        init: `uniform` draws U(-1, 1) / sqrt(fan_in) from the seed; a number fills the factor.
        fan_in: number of inputs that one output of this factor sums over.
        frozen: True if it is neither trained nor stored, but drawn from the seed once for all sites of one shape.
    """

    name: str
    shape: tuple[int, ...]
    hidden_axis: int | None
    init: Literal["uniform"] | float = 0.0
    fan_in: int = 1
    frozen: bool = False

    @cached_property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    def initial(self, streams: Streams) -> NDArray[np.float32]:
        """Initial values theta0, flat, shape `(size,)`."""
        if not isinstance(self.init, str):
            return np.full(self.size, self.init, dtype=np.float32)
        return rng.uniform(self.origin(streams).key("init"), self.size) * np.float32(1 / math.sqrt(self.fan_in))

    def origin(self, streams: Streams) -> Streams:
        """The streams that theta0 is drawn from; those of a frozen factor belong to no site."""
        return replace(streams, site="") if self.frozen else streams
