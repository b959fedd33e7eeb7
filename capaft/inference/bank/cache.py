"""The factors of adapters that were used last, within a limit of bytes."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from torch import Tensor

from capaft.inference.bank.entry import Entry


class Expanded(NamedTuple):
    """What the forward needs of one adapter.

    Attributes:
        factors: for each map of the family its factors, `(S, *factor shape)`; an empty tensor where all adapters of the
            family share them.
        head: the parameters of its head, by canonical name.
    """

    factors: tuple[Tensor, ...]
    head: dict[str, Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in (*self.factors, *self.head.values()))


class FactorCache:
    """Expanded adapters, the least recently used ones dropped.

    Args:
        limit: bytes to keep at most. One adapter that is larger is not kept.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.nbytes = 0
        self._kept: OrderedDict[Entry, Expanded] = OrderedDict()

    def get(self, entry: Entry) -> Expanded | None:
        """An adapter's factors, which become the last used; None if they are not here."""
        expanded = self._kept.get(entry)
        if expanded is not None:
            self._kept.move_to_end(entry)
        return expanded

    def put(self, entry: Entry, expanded: Expanded) -> None:
        """Keep an adapter's factors, and drop others if they take too much."""
        self.drop(entry)
        if expanded.nbytes > self.limit:
            return
        self._kept[entry] = expanded
        self.nbytes += expanded.nbytes
        while self.nbytes > self.limit:
            self.nbytes -= self._kept.popitem(last=False)[1].nbytes

    def drop(self, entry: Entry) -> None:
        """Forget an adapter's factors."""
        if (expanded := self._kept.pop(entry, None)) is not None:
            self.nbytes -= expanded.nbytes
