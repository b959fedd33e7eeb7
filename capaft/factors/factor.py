"""A factor of an adapter: the shape that a host asks for at one site, and the values it starts from.

A host (LoRA, say) asks for factors by their shape. What is trained need not be the factor itself; see
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
