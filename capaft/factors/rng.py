"""Seeded streams of the same random numbers on every machine, for ever (seed contract, version 1).

A stream is the output of Philox4x64-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") under a
128-bit key, and the key is a hash of the user's seed, the site, the factor and the purpose of the stream. So no stream
depends on module order, on another stream, or on any global generator, and word `i` is available without the words
before it. Everything below is integer arithmetic on raw 64-bit words; a library's distributions (`Generator.normal` and
the like) may change between versions and are never used.

The rejected alternative is `torch.manual_seed(seed); torch.randn(...)`, which gives different numbers on different
devices and promises nothing between releases.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CONTRACT_VERSION = 1
MAX_SEED = 2**64 - 1

Words = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Key:
    """The 128-bit Philox key of one stream, as two 64-bit halves."""

    k0: int
    k1: int


def fold_in(seed: int, site: str, factor: str, purpose: str) -> Key:
    """Derive the key of one stream.

    Args:
        seed: the user's integer, `0 <= seed < 2**64`.
        site: canonical module path of the site.
        factor: name of the factor (`down`, `up`, `head:<parameter>`, ...).
        purpose: purpose of the stream (`init`, `hadamard.signs`, `mask.0`, ...).

    Raises:
        ValueError: the seed is out of range.
    """
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"seed must be in [0, 2**64), got {seed}")
    text = json.dumps(
        [f"capaft/{CONTRACT_VERSION}", seed, site, factor, purpose], separators=(",", ":"), ensure_ascii=True
    )
    digest = hashlib.blake2b(text.encode("ascii"), digest_size=16).digest()
    return Key(int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little"))


@dataclass(frozen=True, slots=True)
class Streams:
    """The streams of one factor at one site, one for each purpose."""

    seed: int
    site: str
    factor: str

    def key(self, purpose: str) -> Key:
        """The key of the stream for one purpose."""
        return fold_in(self.seed, self.site, self.factor, purpose)


def words(key: Key, count: int, start: int = 0) -> Words:
    """Raw words `start .. start + count - 1` of a stream, shape `(count,)`."""
    block, skip = divmod(start, 4)
    # numpy increments the counter before it generates, hence one block back (modulo 2**256).
    philox = np.random.Philox(key=key.k0 | key.k1 << 64, counter=(block - 1) % 2**256)
    drawn = np.random.Generator(philox).integers(0, 2**64, size=skip + count, dtype=np.uint64)
    return drawn[skip:]


def bits(key: Key, count: int) -> NDArray[np.uint8]:
    """Bits of a stream, 0 or 1: bit `i` is bit `i mod 64` of word `i // 64`. Shape `(count,)`."""
    raw = words(key, -(-count // 64)).astype("<u8", copy=False)
    return np.unpackbits(raw.view(np.uint8), count=count, bitorder="little")


def signs(key: Key, count: int) -> NDArray[np.int8]:
    """Signs `0 .. count - 1`: +1 where the bit is 1, -1 where it is 0. Shape `(count,)`."""
    return (bits(key, count).astype(np.int8) << 1) - np.int8(1)


def lanes(key: Key, count: int, start_word: int = 0) -> NDArray[np.uint16]:
    """16-bit lanes of the words from `start_word` on, least significant first. Shape `(count,)`."""
    raw = words(key, -(-count // 4), start_word).astype("<u8", copy=False)
    return raw.view("<u2")[:count]


def uniform(key: Key, count: int, start_word: int = 0) -> NDArray[np.float32]:
    """Values in (-1, 1), symmetric, on a grid of 2**16 points: `(2u + 1 - 65536) / 65536`. Exact in float32."""
    return uniform_of_lanes(lanes(key, count, start_word))


def uniform_of_lanes(drawn: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Values of `uniform` for lanes that are already drawn."""
    return (drawn.astype(np.float32) * np.float32(2) + np.float32(1 - 65536)) * np.float32(1 / 65536)


def order(key: Key, n: int, m: int | None = None) -> NDArray[np.int64]:
    """Ascending argsort of words `0 .. n - 1`, ties by index; the first m of it, or all. Shape `(n,)` or `(m,)`."""
    drawn = words(key, n)
    if m is None or m >= n:
        return _argsort(drawn)
    if m == 0:
        return np.empty(0, dtype=np.int64)
    # Finding the m smallest takes a hundredth of the time of sorting millions.
    candidates = np.flatnonzero(drawn <= np.partition(drawn, m - 1)[m - 1])
    return candidates[np.argsort(drawn[candidates], kind="stable")][:m].astype(np.int64, copy=False)


def _argsort(drawn: Words) -> NDArray[np.int64]:
    """Ascending argsort, ties by index, of fewer than 2**32 words.

    Sorting words whose low bits have made room for their indices takes a fraction of the time of a stable argsort.
    """
    low = np.uint64((1 << max(len(drawn) - 1, 0).bit_length()) - 1)
    packed = drawn & ~low | np.arange(len(drawn), dtype=np.uint64)
    packed.sort()
    indices = (packed & low).astype(np.int64)
    # Words that agree in their high bits stand by index so far.
    alike = np.flatnonzero((packed[1:] ^ packed[:-1]) <= low)
    places = np.union1d(alike, alike + 1)
    indices[places] = indices[places][np.argsort(drawn[indices[places]], kind="stable")]
    return indices


def permutation(key: Key, n: int, m: int | None = None) -> NDArray[np.int64]:
    """A permutation of `0 .. n - 1`, or the first m of it: the `order` of the stream."""
    return order(key, n, m)


def subset(key: Key, n: int, m: int) -> NDArray[np.bool_]:
    """Membership of `n` entries in a random subset of exactly `m`: the first `m` of `order`. Shape `(n,)`."""
    if not 0 < m < n:
        return np.full(n, m >= n, dtype=np.bool_)
    drawn = words(key, n)
    last = np.partition(drawn, m - 1)[m - 1]
    member = drawn < last
    member[np.flatnonzero(drawn == last)[: m - np.count_nonzero(member)]] = True
    return member


def buckets(key: Key, n: int, count: int) -> NDArray[np.int64]:
    """A bucket in `0 .. count - 1` for each of `n` entries: `((word_i >> 32) * count) >> 32`. Shape `(n,)`."""
    if not 1 <= count <= 2**31:
        raise ValueError(f"the number of buckets must be in [1, 2**31], got {count}")
    return ((words(key, n) >> np.uint64(32)) * np.uint64(count) >> np.uint64(32)).astype(np.int64)
