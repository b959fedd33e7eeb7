"""Streams are exactly as docs/adapter-format.md says, in whatever order and portions they are read."""

from __future__ import annotations

import hashlib
import json
import random
from itertools import pairwise

import naive_reader
import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

import capaft
from capaft.factors import rng
from capaft.factors.rng import Key, Streams

WORD = st.integers(0, 2**64 - 1)
KEYS = st.builds(Key, WORD, WORD)
STARTS = st.one_of(st.integers(0, 40), st.integers(0, 2**40))
COUNTS = st.integers(0, 70)
GOLDEN = rng.fold_in(0, "layer.0.query", "down", "init")


def naive(key: Key) -> tuple[int, int]:
    return key.k0, key.k1


# The generator

KNOWN_ANSWERS = [  # Random123, tests/kat_vectors, philox4x64 10
    (
        "0000000000000000 0000000000000000 0000000000000000 0000000000000000",
        "0000000000000000 0000000000000000",
        "16554d9eca36314c db20fe9d672d0fdc d7e772cee186176b 7e68b68aec7ba23b",
    ),
    (
        "ffffffffffffffff ffffffffffffffff ffffffffffffffff ffffffffffffffff",
        "ffffffffffffffff ffffffffffffffff",
        "87b092c3013fe90b 438c3c67be8d0224 9cc7d7c69cd777b6 a09caebf594f0ba0",
    ),
    (
        "243f6a8885a308d3 13198a2e03707344 a4093822299f31d0 082efa98ec4e6c89",
        "452821e638d01377 be5466cf34e90c6c",
        "a528f45403e61d95 38c72dbd566e9788 a5a1610e72fd18b5 57bd43b5e52b7fe6",
    ),
]


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN_ANSWERS)
def test_published_vectors(counter: str, key: str, output: str) -> None:
    counter_words, key_words, expected = (tuple(int(w, 16) for w in text.split()) for text in (counter, key, output))
    assert naive_reader.philox(counter_words, key_words) == expected
    # numpy, whose generator capaft uses, at the same counter (it counts up first).
    position = sum(word << 64 * i for i, word in enumerate(counter_words))
    philox = np.random.Philox(key=key_words[0] | key_words[1] << 64, counter=(position - 1) % 2**256)
    assert tuple(philox.random_raw(4).tolist()) == expected


def test_the_zero_key_starts_with_the_published_vector() -> None:
    first = [int(word, 16) for word in KNOWN_ANSWERS[0][2].split()]
    assert rng.words(Key(0, 0), 4).tolist() == first


@given(KEYS, STARTS, COUNTS)
@example(Key(0, 0), 0, 0)
@example(Key(2**64 - 1, 2**64 - 1), 2**64 - 6, 12)
def test_words_are_the_naive_generators(key: Key, start: int, count: int) -> None:
    drawn = rng.words(key, count, start)
    assert drawn.dtype == np.uint64
    assert drawn.tolist() == naive_reader.words(naive(key), count, start)


@given(KEYS, st.integers(1, 200))
def test_full_range_integers_are_the_raw_words(key: Key, count: int) -> None:
    philox = np.random.Philox(key=key.k0 | key.k1 << 64, counter=2**256 - 1)
    assert rng.words(key, count).tolist() == philox.random_raw(count).tolist()


@given(KEYS, st.lists(st.integers(0, 60), max_size=6))
def test_order_and_portions_change_nothing(key: Key, cuts: list[int]) -> None:
    whole = rng.words(key, 61).tolist()
    spans = list(pairwise([0, *sorted(cuts), 61]))
    last_first = [rng.words(key, stop - start, start) for start, stop in reversed(spans)]
    assert np.concatenate(last_first[::-1]).tolist() == whole
    assert [rng.words(key, 1, index).tolist() for index in cuts] == [[whole[index]] for index in cuts]


# Keys


@given(WORD, st.text(max_size=20), st.text(max_size=10), st.text(max_size=10))
@example(0, "layer.0.query", "down", "init")
@example(2**64 - 1, 'quote " backslash \\ é 𝄞 \udc80 \x7f', "head:out_proj.weight", "mask.11")
def test_keys_are_the_hash_of_a_json_list(seed: int, site: str, factor: str, purpose: str) -> None:
    text = json.dumps(["capaft/1", seed, site, factor, purpose], separators=(",", ":"), ensure_ascii=True)
    digest = hashlib.blake2b(text.encode("ascii"), digest_size=16).digest()
    halves = tuple(np.frombuffer(digest, "<u8").tolist())
    assert naive(rng.fold_in(seed, site, factor, purpose)) == halves
    assert Streams(seed, site, factor).key(purpose) == rng.fold_in(seed, site, factor, purpose)


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ((0, "layer.0.query", "down", "init"), "5367bed243ee2a90 33c441b31e95c2a2"),
        ((2**64 - 1, "h.0.attn.c_attn#q", "up", "mask.1"), "fbf33b78cab4aed6 0dc5bb85b724ad09"),
        ((7, "é", "head:weight", "hadamard.signs"), "0cbbdf32aa699703 6a5f82ad7071633b"),
    ],
)
def test_golden_keys(arguments: tuple[int, str, str, str], key: str) -> None:
    assert "{:016x} {:016x}".format(*naive(rng.fold_in(*arguments))) == key


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seeds_have_a_range(seed: int) -> None:
    with pytest.raises(ValueError, match="seed"):
        rng.fold_in(seed, "", "", "")


# Values


@given(KEYS, st.integers(0, 300))
def test_signs_and_bits(key: Key, count: int) -> None:
    assert rng.bits(key, count).tolist() == naive_reader.bits(naive(key), count)
    assert rng.signs(key, count).tolist() == naive_reader.signs(naive(key), count).tolist()


@given(KEYS, st.integers(0, 70), STARTS)
def test_uniform(key: Key, count: int, start: int) -> None:
    drawn = rng.uniform(key, count, start)
    assert drawn.dtype == np.float32
    assert drawn.tolist() == naive_reader.uniform(naive(key), count, start).tolist()


def test_uniform_lies_on_a_symmetric_grid_inside_one() -> None:
    grid = rng.uniform_of_lanes(np.arange(2**16, dtype=np.uint16))
    assert grid[0] == -grid[-1] == np.float32(-65535 / 65536)
    assert (np.diff(grid) == np.float32(2 / 65536)).all()
    assert (grid == -grid[::-1]).all()


@given(KEYS, st.integers(0, 200))
def test_permutation(key: Key, n: int) -> None:
    drawn = rng.permutation(key, n).tolist()
    assert drawn == naive_reader.order(naive(key), n)
    assert sorted(drawn) == list(range(n))
    assert all(rng.permutation(key, n, m).tolist() == drawn[:m] for m in (0, 1, n // 2, n))


def test_ties_go_by_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rng, "words", lambda key, n: np.array([2**63, 5, 2**64 - 1, 5, 0], dtype=np.uint64)[:n])
    assert rng.order(GOLDEN, 5).tolist() == [4, 1, 3, 0, 2]
    for m in range(6):
        assert rng.order(GOLDEN, 5, m).tolist() == [4, 1, 3, 0, 2][:m]
        assert np.flatnonzero(rng.subset(GOLDEN, 5, m)).tolist() == sorted([4, 1, 3, 0, 2][:m])


@given(st.lists(st.sampled_from([0, 1, 2, 63, 64, 2**40, 2**40 + 1, 2**63, 2**64 - 1]), max_size=70))
def test_words_that_agree_in_their_high_bits_are_in_order(drawn: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rng, "words", lambda key, n: np.array(drawn, dtype=np.uint64))
        assert rng.order(GOLDEN, len(drawn)).tolist() == sorted(range(len(drawn)), key=drawn.__getitem__)


@given(KEYS, st.data())
def test_subset(key: Key, data: st.DataObject) -> None:
    n = data.draw(st.integers(0, 120))
    m = data.draw(st.integers(0, n))
    drawn = rng.subset(key, n, m)
    assert drawn.sum() == m
    assert set(np.flatnonzero(drawn).tolist()) == set(naive_reader.order(naive(key), n)[:m])


@given(KEYS, st.integers(0, 60), st.integers(1, 2**31))
def test_buckets(key: Key, n: int, count: int) -> None:
    drawn = rng.buckets(key, n, count).tolist()
    assert drawn == naive_reader.buckets(naive(key), n, count).tolist()
    assert all(0 <= bucket < count for bucket in drawn)


@pytest.mark.parametrize("count", [0, -1, 2**31 + 1])
def test_buckets_have_a_range(count: int) -> None:
    with pytest.raises(ValueError, match="buckets"):
        rng.buckets(GOLDEN, 4, count)


def test_golden_values() -> None:
    assert [f"{word:016x}" for word in rng.words(GOLDEN, 2)] == ["42b3b71e04dfdb0a", "e6b31146d246ddb0"]
    assert rng.signs(GOLDEN, 16).tolist() == [-1, 1, -1, 1, -1, -1, -1, -1, 1, 1, -1, 1, 1, -1, 1, 1]
    assert (rng.uniform(GOLDEN, 6) * 65536).tolist() == [46613.0, -63041.0, 28221.0, -31385.0, 47969.0, 42125.0]
    assert rng.permutation(GOLDEN, 10).tolist() == [0, 3, 9, 7, 4, 8, 1, 2, 5, 6]
    assert np.flatnonzero(rng.subset(GOLDEN, 20, 5)).tolist() == [0, 3, 9, 16, 18]
    assert rng.buckets(GOLDEN, 12, 5).tolist() == [1, 4, 4, 1, 3, 4, 4, 2, 3, 2, 4, 4]


# Global generators


def test_global_generators_are_untouched() -> None:
    def states() -> list[str]:
        return [str(torch.get_rng_state().tolist()), str(np.random.get_state()), str(random.getstate())]

    model = nn.ModuleDict({"query": nn.Linear(16, 16), "value": nn.Linear(16, 16)})
    before = states()
    rng.uniform(GOLDEN, 9)
    rng.subset(GOLDEN, 9, 2)
    for basis in ("hadamard", "uniform", "group"):
        capaft.attach(model, "lora+nola+capaboost", name=basis, rank=2, k=4, basis=basis)
        capaft.detach(model, basis)
    capaft.attach(model, "capaboost", rank=2, masks="partition")
    assert states() == before
