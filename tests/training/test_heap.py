"""What the heap would take for training, against what was asked of it."""

from __future__ import annotations

import resource
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capaft.training import heap
from capaft.training.heap import Heap, Request, Requests

MIB = 2**20
pytestmark = pytest.mark.skipif(Heap.of_glibc() is None, reason="another C library than glibc")


def blocks(*sizes: int, start: int = 0, kept: bool = False) -> list[Request]:
    """Blocks of so many MiB that live at the same time, and go unless they are kept."""
    numbers = range(start, start + len(sizes))
    asked = [partial(Heap.allocate, number=n, size=size * MIB) for n, size in zip(numbers, sizes, strict=True)]
    return asked if kept else [*asked, *(partial(Heap.release, number=n) for n in numbers)]


@given(st.lists(st.integers(64, 200), min_size=1, max_size=8))
def test_it_grows_by_at_least_what_lives(sizes: list[int]) -> None:
    # Blocks of more than 32 MiB never come from room that earlier ones left.
    least = sum(sizes) * MIB
    assert least <= heap.growth(Requests(blocks(*sizes), [], [], [])) <= least + MIB


def test_what_stays_is_added_to_what_comes_later() -> None:
    found = heap.growth(Requests(blocks(100, kept=True), blocks(70, start=1), blocks(50, start=2), []))
    assert 170 * MIB <= found <= 171 * MIB


def test_what_a_step_leaves_is_given_back_before_the_next() -> None:
    found = heap.growth(Requests([], blocks(80, kept=True), [], []))
    assert 80 * MIB <= found <= 81 * MIB


def test_a_checkpoint_takes_each_tensor_and_all_in_one() -> None:
    assert 320 * MIB <= heap.growth(Requests([], [], [], [100 * MIB, 60 * MIB])) <= 321 * MIB


def addresses() -> int:
    """Bytes that this process has addresses for."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def test_nothing_is_kept_afterwards() -> None:
    before = addresses()
    assert heap.growth(Requests(blocks(1024, kept=True), blocks(512, start=1), [], [2**28])) > 3 * 2**29
    assert addresses() < before + 2**28


def test_more_than_there_are_addresses() -> None:
    with pytest.raises(MemoryError):
        heap.growth(Requests(blocks(2**28, kept=True), [], [], []))
