"""Who is who in the forwards of one thread: which adapter each example of a batch goes through.

A frame belongs to the thread, or the task, that made it, so forwards of several threads never see one another's.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from torch import Tensor

from capaft.adapter.flow import Factors
from capaft.inference.bank.cache import Expanded
from capaft.inference.bank.family import Family


class Group:
    """The examples of a batch whose adapters are of one family.

    Args:
        family: the family.
        members: its adapters in the batch, each once.
        chosen: for each example of the group, its adapter's position in `members`.
        rows: positions of the examples in the batch; None if they are all of it.

    Attributes:
        is_single: True if all of them have the same adapter.
        size: number of examples; 0 if it is any number, all with the same adapter.
    """

    def __init__(
        self, family: Family, members: Sequence[Expanded], chosen: Sequence[int] = (), rows: Tensor | None = None
    ) -> None:
        self.family, self.rows, self.size = family, rows, len(chosen)
        self.is_single = len(members) == 1
        in_order = self.is_single or list(chosen) == list(range(len(members)))
        self._chosen = None if in_order else torch.tensor(chosen, device=family.device)
        (first, *others) = members
        self._factors, self._head = list(first.factors), dict(first.head)
        if others:
            self._factors = [torch.stack([m.factors[number] for m in members]) for number in range(len(first.factors))]
            self._head = {name: torch.stack([m.head[name] for m in members]) for name in first.head}
        self._fixed = family.fixed
        self._like: tuple[torch.device, torch.dtype] | None = None

    def factors(self, place: int, like: Tensor) -> tuple[Factors, tuple[int | None, ...]]:
        """The factors at a place in the device and dtype of a tensor, and the axis of the examples in each, or None."""
        # Cast once and not at every place: these are the frame's own.
        if self._like != (like.device, like.dtype):
            self._like = (like.device, like.dtype)
            self._factors = [factors.to(like.device, like.dtype) for factors in self._factors]
        factors: list[Tensor] = []
        axes: list[int | None] = []
        for number, position in self.family.sources[place]:
            if (shared := self.family.shared[number]) is not None:
                factors.append(shared[position].to(like.device, like.dtype))
                axes.append(None)
            elif self.is_single:
                factors.append(self._factors[number][position])
                axes.append(None)
            else:
                factors.append(self._of_examples(self._factors[number][:, position]))
                axes.append(0)
        return tuple(factors), tuple(axes)

    def head(self, name: str) -> tuple[Tensor, int | None]:
        """A parameter of the head, and the axis of the examples in it, or None."""
        if name in self._fixed:
            return self._fixed[name], None
        return (self._head[name], None) if self.is_single else (self._of_examples(self._head[name]), 0)

    def _of_examples(self, values: Tensor) -> Tensor:
        return values if self._chosen is None else values[self._chosen]


@dataclass(eq=False)
class Frame:
    """What the forwards of a thread go through.

    Attributes:
        groups: the examples by family; those of none go through the base model alone.
        count: number of examples; 0 if it is any number, all with the same adapter.
        axes: by module, the axis on which the examples stand in what the module gives; None where they do not.
        probed_axes: the same, while a probe looks for them; None otherwise.
        inputs: inputs of modules that wait for the places that take them.
    """

    groups: tuple[Group, ...]
    count: int = 0
    axes: dict[str, int | None] = field(default_factory=dict)
    probed_axes: dict[str, int | None] | None = None
    inputs: dict[Hashable, Tensor] = field(default_factory=dict)

    @property
    def is_mixed(self) -> bool:
        """True if examples differ in their adapters, so that it matters which rows are whose."""
        return any(group.rows is not None or not group.is_single for group in self.groups)


CurrentFrame = ContextVar[Frame | None]
