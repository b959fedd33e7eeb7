"""The sum of a base weight and the updates of adapters, a block of rows at a time.

The sum is taken in float32 (or the weight's own precision, if higher) and rounded once. Blocks keep the memory small
beside a large weight, and since every merge goes through here, in memory or from file to file, all give the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from capaft.methods.host import Host
from capaft.model.site import Site

BLOCK_ENTRIES = 2**18
"""Entries of a weight that are summed at once: few enough to stay in the processor's cache."""


@dataclass(frozen=True, eq=False)
class Update:
    """What one adapter adds at one site.

    Attributes:
        host: the adapter's method.
        site: the site.
        factors: its factors.
        weight: multiplies the update, which has to be additive if it is not 1.
    """

    host: Host
    site: Site
    factors: tuple[Tensor, ...]
    weight: float = 1.0


@dataclass
class Rounding:
    """The size of updates, and of what rounding to the weights' dtypes changed.

    Attributes:
        layers: by path of a module, both as sums of squares.
        coarsest: the coarsest dtype that was rounded to; None if nothing was rounded.
    """

    layers: dict[str, tuple[float, float]] = field(default_factory=dict)
    coarsest: torch.dtype | None = None

    @property
    def error(self) -> float:
        """The size of what rounding changed, relative to that of the updates."""
        changed, lost = (sum(column) for column in zip((0.0, 0.0), *self.layers.values(), strict=True))
        return math.sqrt(lost / changed) if changed else 0.0

    @property
    def by_layer(self) -> dict[str, float]:
        """The same for each module that has an update."""
        return {path: math.sqrt(lost / changed) for path, (changed, lost) in self.layers.items() if changed}

    def add(self, path: str, update: Tensor, lost: Tensor | None, dtype: torch.dtype) -> None:
        """Count a block of a module: its update, and what rounding to a dtype changed, None if nothing was rounded."""
        changed, before = self.layers.get(path, (0.0, 0.0))
        self.layers[path] = changed + _square(update), before + (0.0 if lost is None else _square(lost))
        if lost is not None:
            self.coarsest = max(self.coarsest or dtype, dtype, key=lambda dtype: torch.finfo(dtype).eps)

    def include(self, other: Rounding) -> None:
        """Count what another one counted."""
        for path, (changed, lost) in other.layers.items():
            before = self.layers.get(path, (0.0, 0.0))
            self.layers[path] = before[0] + changed, before[1] + lost
        dtypes = [dtype for dtype in (self.coarsest, other.coarsest) if dtype]
        self.coarsest = max(dtypes, key=lambda dtype: torch.finfo(dtype).eps, default=None)


def add_updates(
    weight: Tensor,
    bias: Tensor | None,
    updates: Sequence[Update],
    rounding: Rounding,
    target: torch.dtype | None = None,
) -> None:
    """Add updates of one parameter to its values, in place.

    Args:
        weight: the parameter as it is stored, of any layout and dtype; gradients have to be off.
        bias: the bias of its module, which some methods change too; None if there is none.
        updates: those of one adapter for each part of the parameter, or of several adapters for the same parts.
        rounding: counts what rounding costs.
        target: dtype that the values are rounded to later; None if they stay as they are.
    """
    stored = weight.contiguous()
    with _one_thread():
        _add_all(stored, bias, updates, rounding, target or weight.dtype)
    if stored.data_ptr() != weight.data_ptr():
        weight.copy_(stored)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Has torch compute in one thread: blocks are too small to be worth a second one, which a busy machine waits for.

    It also keeps the bits independent of the number of threads.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _add_all(
    stored: Tensor, bias: Tensor | None, updates: Sequence[Update], rounding: Rounding, target: torch.dtype
) -> None:
    for same in _by_part(updates):
        site = same[0].site
        for part, first in _parts(site, stored):
            rows = len(part) if any(_rows(update, 0, 1) is None for update in same) else _block(part)
            for start in range(0, len(part), rows):
                stop = min(start + rows, len(part))
                bias_part = None if bias is None else _bias(site, bias)[first + start : first + stop]
                changed = _add(part[start:stop], bias_part, same, (first + start, first + stop), rounding, target)
                if changed is not None and bias is not None:
                    _set_bias(site, bias, first + start, changed)


def _add(
    values: Tensor,
    bias: Tensor | None,
    updates: Sequence[Update],
    rows: tuple[int, int],
    rounding: Rounding,
    target: torch.dtype,
) -> Tensor | None:
    """Add updates to a block of a weight, `(rows, in)`, in place; the new bias if it changes."""
    exact = torch.promote_types(values.dtype, torch.float32)
    before = values.to(exact, copy=True)
    after, old_bias = before, None if bias is None else bias.to(exact)
    new_bias = old_bias
    for update in updates:
        held = tuple(factor.to(values.device, exact) for factor in update.factors)
        of_rows = _rows(update, *rows, factors=held)
        factors = held if of_rows is None else of_rows
        if update.weight == 1.0:
            after, new_bias = update.host.merged(update.site, after, new_bias, factors)
        else:
            change, _ = update.host.merged(update.site, torch.zeros_like(before), None, factors)
            after = after.add(change, alpha=update.weight)
    values.copy_(after)
    final = min(values.dtype, target, key=lambda dtype: dtype.itemsize)
    lost = None if final == exact else values.to(final).to(exact).sub_(after)
    rounding.add(updates[0].site.module, after - before, lost, final)
    return None if new_bias is old_bias else new_bias


def _rows(
    update: Update, start: int, stop: int, factors: tuple[Tensor, ...] | None = None
) -> tuple[Tensor, ...] | None:
    return update.host.rows_of(update.site, update.factors if factors is None else factors, start, stop)


def _by_part(updates: Sequence[Update]) -> Iterator[list[Update]]:
    """Updates of the same part of a parameter, whose sum is rounded once."""
    parts: dict[tuple[object, ...], list[Update]] = {}
    for update in updates:
        parts.setdefault((update.site.rows, update.site.index, update.site.transposed), []).append(update)
    yield from parts.values()


def _parts(site: Site, stored: Tensor) -> Iterator[tuple[Tensor, int]]:
    """Views of a parameter, `(rows, in)`, that make up a site, each with the number of its first row."""
    values = stored if site.index is None else stored[site.index]
    if values.ndim < 2:
        yield values.view(-1, 1), 0
        return
    matrix = values.T if site.transposed else values.flatten(1)
    if site.rows is None:
        yield matrix, 0
        return
    for group, part in enumerate(site.rows.view(matrix, 0)):
        yield part, group * site.rows.block


def _bias(site: Site, bias: Tensor) -> Tensor:
    return site.rows.take(bias, 0) if site.rows else bias


def _set_bias(site: Site, bias: Tensor, start: int, values: Tensor) -> None:
    """Set some entries of a site's part of a bias; `start` counts from the part's first."""
    if site.rows is None:
        bias[start : start + len(values)].copy_(values)
        return
    group, offset = divmod(start, site.rows.block)
    site.rows.view(bias, 0)[group, offset : offset + len(values)].copy_(values)


def _block(part: Tensor) -> int:
    return max(1, BLOCK_ENTRIES // max(1, part.shape[1]))


def _square(values: Tensor) -> float:
    flat = values.reshape(-1)
    return float(torch.dot(flat, flat))
