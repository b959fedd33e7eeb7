"""Rows set aside: in the proportions of their classes."""

from __future__ import annotations

from collections import Counter

import pytest
from datasets import Dataset

from capaft.data.sampling import hold_out


def parts(classes: list[int] | None, share: float, seed: int = 0, count: int = 0) -> tuple[list[int], list[int]]:
    rows = Dataset.from_dict({"row": list(range(len(classes) if classes else count))})
    kept, aside = hold_out("data", rows, share, seed, classes)
    return kept["row"][:], aside["row"][:]


@pytest.mark.parametrize("seed", range(3))
def test_both_parts_have_the_proportions_of_the_classes(seed: int) -> None:
    classes = [0] * 600 + [1] * 300 + [2] * 95 + [3] * 5
    kept, aside = parts(classes, 0.1, seed)
    assert sorted(kept + aside) == list(range(1000))
    assert Counter(classes[row] for row in aside) in ({0: 60, 1: 30, 2: 10}, {0: 60, 1: 30, 2: 9, 3: 1})
    assert aside == sorted(aside)
    assert parts(classes, 0.1, seed) == (kept, aside)
    assert parts(classes, 0.1, seed + 1) != (kept, aside)


def test_each_class_keeps_a_row_to_train_on() -> None:
    kept, aside = parts([0] * 10 + [1, 2, 3], 0.9)
    assert {10, 11, 12} <= set(kept)
    assert (len(kept), len(aside)) == (4, 9)
    kept, aside = parts([0, 0, 1, 1], 0.5)
    assert (len(kept), len(aside)) == (2, 2)
    # Without two rows of a class there is nothing to keep in proportion.
    assert [len(part) for part in parts([0, 1, 2, 3], 0.25)] == [3, 1]


def test_equal_classes_share_by_the_seed() -> None:
    classes = [row % 40 for row in range(200)]
    chosen = [frozenset(classes[row] for row in parts(classes, 0.1, seed)[1]) for seed in range(3)]
    assert [len(of_seed) for of_seed in chosen] == [20] * 3
    assert len(set(chosen)) == 3


def test_rows_without_classes_are_split_as_ever() -> None:
    assert parts(None, 0.1, 0, 40)[1] == [10, 13, 24, 26]
    assert parts(None, 0.1, 7, 20)[1] == [1, 5]
