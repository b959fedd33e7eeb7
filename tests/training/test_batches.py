from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from capaft.training import batches

LENGTHS = st.lists(st.integers(1, 200), min_size=1, max_size=300).map(lambda lengths: np.array(lengths, dtype=np.int64))


@given(LENGTHS, st.integers(1, 40), st.integers(0, 2**64 - 1), st.integers(0, 5))
def test_every_example_once(lengths: np.ndarray, size: int, seed: int, epoch: int) -> None:
    made = batches.training_batches(lengths, size, seed, epoch)
    assert sorted(i for batch in made for i in batch) == list(range(len(lengths)))
    assert all(len(batch) <= size for batch in made)
    assert made == batches.training_batches(lengths, size, seed, epoch)


@given(LENGTHS, st.integers(1, 40))
def test_evaluation_takes_the_longest_first(lengths: np.ndarray, size: int) -> None:
    order = [i for batch in batches.evaluation_batches(lengths, size) for i in batch]
    assert sorted(order) == list(range(len(lengths)))
    assert (np.diff(lengths[order]) <= 0).all()


@given(LENGTHS, st.integers(1, 40), st.randoms(use_true_random=False))
def test_evaluation_bounds_the_logits(lengths: np.ndarray, size: int, random: Any) -> None:
    # Some do not fit at all.
    logits = np.array([random.randrange(batches.MOST_LOGITS * 5 // 4) for _ in lengths])
    made = batches.evaluation_batches(lengths, size, logits)
    assert [i for batch in made for i in batch] == [
        i for batch in batches.evaluation_batches(lengths, 1) for i in batch
    ]
    assert all(len(batch) <= size for batch in made)
    assert all(len(batch) == 1 or len(batch) * logits[batch].max() <= batches.MOST_LOGITS for batch in made)
    # As large as may be.
    for batch, (following, *_) in pairwise(made):
        more = [*batch, following]
        assert len(batch) == size or len(more) * logits[more].max() > batches.MOST_LOGITS


@given(st.integers(1, 40), st.integers(1, 5), st.none() | st.integers(1, 12))
def test_processes_share_a_batch_and_keep_step(size: int, processes: int, micro: int | None) -> None:
    batch = list(range(100, 100 + size))
    shares = [batches.micro_batches(batch, rank, processes, micro) for rank in range(processes)]
    counted = [index for share in shares for part, is_own in share if is_own for index in part]
    assert sorted(counted) == batch
    # All make equally many forwards, none of them larger than asked for and none of nothing.
    assert len({len(share) for share in shares}) == 1
    longest = micro or -(-size // processes)
    assert all(1 <= len(part) <= longest for share in shares for part, _ in share)
    assert all(set(part) <= set(batch) for share in shares for part, _ in share)
    # As few as there can be.
    assert len(shares[0]) == math.ceil(math.ceil(size / processes) / longest)
    sizes = [sum(len(part) for part, is_own in share if is_own) for share in shares]
    assert max(sizes) - min(sizes) <= 1


def test_one_example_for_two_processes() -> None:
    assert batches.micro_batches([7], 0, 2, None) == [([7], True)]
    assert batches.micro_batches([7], 1, 2, None) == [([7], False)]


def test_epochs_and_seeds_differ_and_padding_is_saved() -> None:
    lengths = np.random.default_rng(0).integers(1, 200, 1000)
    first = batches.training_batches(lengths, 16, 0, 0)
    assert first != batches.training_batches(lengths, 16, 0, 1)
    assert first != batches.training_batches(lengths, 16, 1, 0)

    def padding(made: list[list[int]]) -> int:
        return sum(len(batch) * lengths[batch].max() - lengths[batch].sum() for batch in made)

    unsorted = [list(range(i, min(i + 16, 1000))) for i in range(0, 1000, 16)]
    assert padding(first) < padding(unsorted) / 5
