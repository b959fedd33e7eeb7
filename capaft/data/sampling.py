"""Seeded choice of rows: a validation part, a sample, or a number of rows of each class."""

from __future__ import annotations

from collections.abc import Sequence

import datasets
import numpy as np
from numpy.typing import NDArray

from capaft.data.splits import VALIDATION
from capaft.factors import rng
from capaft.support.errors import UsageError


def hold_out(
    spec: str, rows: datasets.Dataset, share: float, seed: int, classes: Sequence[int] | None = None
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Split rows into training and validation rows, both in their old order.

    Args:
        spec: the user's name for the data set, for messages.
        rows: all rows.
        share: fraction of the rows that become validation rows, between 0 and 1.
        seed: decides which rows these are.
        classes: the class of each row, if it has one: both parts have the classes in the same proportions, and the
            training rows have each of them.

    Raises:
        UsageError: there are fewer than two rows, or the share is out of range.
    """
    if not 0 < share < 1:
        raise UsageError(f"--validation-split must lie between 0 and 1, got {share}")
    if len(rows) < 2:
        raise UsageError(f"{spec}: {len(rows)} row(s) cannot be split into train and validation; add rows")
    size = min(max(round(share * len(rows)), 1), len(rows) - 1)
    shuffled = rng.permutation(rng.fold_in(seed, "", "data", VALIDATION), len(rows))
    if classes is not None and len(np.unique(classes)) < len(rows):
        shuffled, size = _stratified(shuffled, np.asarray(classes, dtype=np.int64), size)
    return rows.select(np.sort(shuffled[size:])), rows.select(np.sort(shuffled[:size]))


def _stratified(shuffled: NDArray[np.int64], class_of: NDArray[np.int64], size: int) -> tuple[NDArray[np.int64], int]:
    """Put a stratified sample before all other rows, by largest remainders; ties go by the shuffled order.

    Args:
        shuffled: all rows, shuffled, `(rows,)`.
        class_of: the class of each row, `(rows,)`.
        size: number of rows in the sample.

    Returns:
        The rows in the new order, and the sample's size: less than `size` if each class could not keep a row.
    """
    _, first, in_order, counts = np.unique(
        class_of[shuffled], return_index=True, return_inverse=True, return_counts=True
    )
    size = min(size, int((counts - 1).sum()))
    quotas = counts * size / len(shuffled)
    taken = np.minimum(np.floor(quotas).astype(np.int64), counts - 1)
    by_remainder = np.lexsort((first, taken - quotas))
    while (left := size - int(taken.sum())) > 0:
        open_classes = by_remainder[taken[by_remainder] < counts[by_remainder] - 1]
        taken[open_classes[:left]] += 1
    # The rank of each row among those of its class, in the shuffled order.
    by_class = np.argsort(in_order, kind="stable")
    rank = np.empty_like(by_class)
    rank[by_class] = np.arange(len(by_class)) - np.repeat(np.cumsum(counts) - counts, counts)
    return shuffled[np.argsort(rank >= taken[in_order], kind="stable")], size


def sample_rows(rows: datasets.Dataset, count: int, seed: int) -> datasets.Dataset:
    """Draw `count` rows, kept in their original order."""
    chosen = rng.permutation(rng.fold_in(seed, "", "data", "sample"), len(rows))[:count]
    return rows.select(np.sort(chosen))


def sample_shots(rows: datasets.Dataset, classes: Sequence[int], count: int, seed: int) -> datasets.Dataset:
    """Draw `count` rows of each class, kept in their original order; a scarcer class gives all its rows.

    The rows drawn from a class depend on the seed and its own rows alone, and a smaller sample is part of a larger one.

    Args:
        rows: the rows to draw from.
        classes: the class of each row.
        count: number of rows of each class.
        seed: decides which rows these are.

    Raises:
        UsageError: `count` is not positive.
    """
    if count < 1:
        raise UsageError(f"the number of rows of each class must be 1 or more, got {count}")
    if len(classes) != len(rows):
        raise ValueError(f"{len(classes)} classes were given for {len(rows)} rows")
    class_of = np.asarray(classes, dtype=np.int64)
    chosen = []
    for label in np.unique(class_of):
        members = np.flatnonzero(class_of == label)
        chosen.append(members[rng.permutation(rng.fold_in(seed, "", "data", f"shots.{label}"), len(members))[:count]])
    return rows.select(np.sort(np.concatenate(chosen))) if chosen else rows
