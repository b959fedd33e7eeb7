"""Which rows are taken: a validation part, a sample, so many of each class; all seeded."""

from __future__ import annotations

from collections.abc import Sequence

import datasets
import numpy as np

from capaft.data.splits import VALIDATION
from capaft.factors import rng
from capaft.support.errors import UsageError


def hold_out(spec: str, rows: datasets.Dataset, share: float, seed: int) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Training and validation rows, both in their old order.

    Args:
        spec: what the user called the rows.
        rows: all of them.
        share: how many of them, of 1, become validation rows.
        seed: decides which these are.

    Raises:
        UsageError: there are fewer than two rows, or the share is none.
    """
    if not 0 < share < 1:
        raise UsageError(f"--validation-split must lie between 0 and 1, got {share}")
    if len(rows) < 2:
        raise UsageError(f"{spec}: {len(rows)} row(s) cannot be split into train and validation; add rows")
    size = min(max(round(share * len(rows)), 1), len(rows) - 1)
    shuffled = rng.permutation(rng.fold_in(seed, "", "data", VALIDATION), len(rows))
    return rows.select(np.sort(shuffled[size:])), rows.select(np.sort(shuffled[:size]))


def sample_rows(rows: datasets.Dataset, count: int, seed: int) -> datasets.Dataset:
    """A seeded sample of `count` rows, in their original order."""
    chosen = rng.permutation(rng.fold_in(seed, "", "data", "sample"), len(rows))[:count]
    return rows.select(np.sort(chosen))


def sample_shots(rows: datasets.Dataset, classes: Sequence[int], count: int, seed: int) -> datasets.Dataset:
    """A seeded sample of `count` rows of each class, in their original order; a scarcer class gives all its rows.

    What a class gives depends on the seed and its own rows alone, and a smaller sample is a part of a larger one.

    Args:
        rows: what is drawn from.
        classes: the class of each row.
        count: how many rows of each class.
        seed: decides which rows these are.

    Raises:
        UsageError: `count` is not positive.
    """
    if count < 1:
        raise UsageError(f"the number of rows of each class must be 1 or more, got {count}")
    if len(classes) != len(rows):
        raise ValueError(f"{len(classes)} classes were given for {len(rows)} rows")
    of_row = np.asarray(classes, dtype=np.int64)
    chosen = []
    for each in np.unique(of_row):
        there = np.flatnonzero(of_row == each)
        chosen.append(there[rng.permutation(rng.fold_in(seed, "", "data", f"shots.{each}"), len(there))[:count]])
    return rows.select(np.sort(np.concatenate(chosen))) if chosen else rows
