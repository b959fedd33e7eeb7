"""Batches of examples, as a pure function of the seed, the epoch and the examples' lengths."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from capaft.factors import rng

# Examples are sorted by length within pools of this many batches: little padding, still well mixed.
POOL = 32
# Logits of an evaluation batch: 1 GiB of float32. No property of the machine, so that a run repeats elsewhere.
MOST_LOGITS = 2**28


def training_batches(lengths: NDArray[np.int64], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Shuffled batches of examples of similar length; every example once.

    Args:
        lengths: tokens in each example, `(examples,)`.
        batch_size: examples in a batch; the last of an epoch may have fewer.
        seed: the run's seed.
        epoch: counted from 0.
    """
    shuffled = rng.permutation(rng.fold_in(seed, "", "data", f"epoch.{epoch}"), len(lengths))
    size = POOL * batch_size
    batches = []
    for start in range(0, len(shuffled), size):
        pool = shuffled[start : start + size]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batches += [pool[first : first + batch_size].tolist() for first in range(0, len(pool), batch_size)]
    turn = rng.permutation(rng.fold_in(seed, "", "data", f"batches.{epoch}"), len(batches))
    return [batches[index] for index in turn]


def micro_batches(
    indices: Sequence[int], rank: int, processes: int, micro_batch_size: int | None
) -> list[tuple[Sequence[int], bool]]:
    """One process's share of a batch, cut into micro-batches; all processes have equally many.

    Args:
        indices: the whole batch.
        rank: number of the process.
        processes: number of processes that share it.
        micro_batch_size: examples in a forward at most; None for the whole share.

    Returns:
        Micro-batches, each with True if it is this process's own; one that is not only keeps step with the others.
    """
    most = math.ceil(len(indices) / processes)
    size = micro_batch_size or most
    count = math.ceil(most / size)
    share = indices[rank::processes]
    parts = [(share[first : first + size], True) for first in range(0, len(share), size)]
    return parts + [(indices[:1], False)] * (count - len(parts))


def evaluation_batches(
    lengths: NDArray[np.int64], batch_size: int, logits: NDArray[np.int64] | None = None
) -> list[list[int]]:
    """Batches in descending order of length, each with at most `MOST_LOGITS` logits, or a single feature.

    Args:
        lengths: of the features, `(features,)`.
        batch_size: features in a batch at most.
        logits: number of logits that the model computes for each feature, `(features,)`; None if they are few.
    """
    made: list[list[int]] = []
    most = 0
    for index in np.argsort(-lengths, kind="stable").tolist():
        of_this = 0 if logits is None else int(logits[index])
        most = max(most, of_this)
        # Shorter features are padded to the longest.
        if not made or len(made[-1]) == batch_size or (len(made[-1]) + 1) * most > MOST_LOGITS:
            made.append([])
            most = of_this
        made[-1].append(index)
    return made
