"""The state of the forwards that are under way, one for each thread.

Threads may call one model at the same time, as `nn.DataParallel` and servers do, and a forward may call the model
again: so nothing that belongs to one forward stands where another could meet it.
"""

from __future__ import annotations

import threading
from typing import Any

from torch import Tensor

Factors = tuple[Tensor, ...]
# The factors of every place, and by place the input of the module that it takes its input from.
Frame = tuple[list[Factors] | None, dict[int, Tensor]]


class Flow:
    """A thread's forwards of the root, each inside the one before it, and what it calls outside them.

    `torch.compile` follows a plain `threading.local` with an attribute, but none with a class of its own.
    """

    def __init__(self) -> None:
        self._local = threading.local()
        self._local.frames = ()

    @property
    def _frames(self) -> tuple[Frame, ...]:
        return getattr(self._local, "frames", ())

    @property
    def factors(self) -> list[Factors] | None:
        """The factors of the innermost forward; None outside."""
        frames = self._frames
        return frames[-1][0] if frames else None

    @factors.setter
    def factors(self, factors: list[Factors]) -> None:
        frames = self._frames
        self._local.frames = (*frames[:-1], (factors, frames[-1][1]))

    @property
    def inputs(self) -> dict[int, Tensor]:
        """The inputs that wait for their places, in the innermost forward or outside."""
        frames = self._frames
        if frames:
            return frames[-1][1]
        outside: dict[int, Tensor] | None = getattr(self._local, "outside", None)
        if outside is None:
            outside = self._local.outside = {}
        return outside

    def enter(self) -> None:
        """Begin a forward of the root."""
        self._local.frames = (*self._frames, (None, {}))

    def leave(self) -> None:
        """End the innermost forward, failed or not."""
        self._local.frames = self._frames[:-1]

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy of a model is in no forward.
        return Flow, ()
