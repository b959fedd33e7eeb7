"""A random basis made from a seed: a linear map R^k -> R^n and its adjoint, for many sites at once.

NOLA (Koohpayegani et al. 2024, arXiv 2310.02556) writes a factor as a combination of `k` frozen random vectors.
Only the combination is trained; the vectors are drawn again from the seed whenever they are needed, so they never
enter a file. There are three bases with the same contract:

- `uniform`, the paper's: entries U(-1, 1) / sqrt(k). It costs k * n multiplications and as many random numbers.
- `hadamard`, the fast one: k randomly chosen columns of a Hadamard matrix with random row signs. It has the same entry
  variance (1 / 3k), rank exactly k where the paper's basis is only probably well conditioned, and takes two small
  matrix products instead of a large one.
- `group`: every entry is one coefficient times a sign, an isometry (Uni-LoRA, arXiv 2506.00799).

A basis is a module only so that its index tensors follow the model to its device; it has no parameters, and its
buffers are never saved.
"""

from __future__ import annotations

import copy
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from capaft.factors import rng
from capaft.factors.rng import Streams
from capaft.support.errors import UsageError


class Basis(nn.Module, ABC):
    """A linear map from `k` coefficients to the `n` entries of a factor, for each of `S` sites.

    Args:
        streams: the seeded streams of each site's factor, length S.
        n: number of entries in a factor.
        k: number of coefficients.

    Attributes:
        by_site: names of the buffers whose first axis is that of the sites.
        keys: keys of the sites' streams, if they are read again.
    """

    by_site: ClassVar[frozenset[str]]
    keys: list[rng.Key]

    def __init__(self, streams: Sequence[Streams], n: int, k: int) -> None:
        super().__init__()
        self.n = n
        self.k = k
        self.keys = []

    @staticmethod
    @abstractmethod
    def words_used(n: int, k: int) -> dict[str, int]:
        """Number of words that one factor reads from the stream of each purpose."""

    @staticmethod
    def room(n: int, k: int) -> int:
        """Entries that the map holds for one factor while it expands."""
        return n

    def settle(self, bases: Sequence[Basis] | None) -> None:
        """Take note of all bases that share these coefficients, including this one; None if no sites share any.

        Raises:
            UsageError: a coefficient of a site would have no effect.
        """
        return

    def of_site(self, index: int) -> Self:
        """The basis of one of the sites alone."""
        basis = copy.copy(self)
        basis._buffers = {
            name: held[index : index + 1] if name in self.by_site and held is not None else held
            for name, held in self._buffers.items()
        }
        basis.keys = self.keys[index : index + 1]
        return basis

    @abstractmethod
    def expand(self, coefficients: Tensor) -> Tensor:
        """`G c` for each site: `(..., S, k) -> (..., S, n)`, float32; axes in front are adapters of one seed."""

    @abstractmethod
    def adjoint(self, gradient: Tensor) -> Tensor:
        """`G^T g` for each site: `(S, n) -> (S, k)`, float32."""


class Hadamard(Basis):
    """`G[i, j] = e_i * (-1)^popcount(i AND col_j) / sqrt(3k)`, computed as a fast transform.

    With N the smallest power of two >= max(n, 2k), a Hadamard matrix factors as `H_N = H_a (x) H_b`, so `H_N x` is
    `H_a X H_b` with X = x reshaped to (a, b). A long vector has a third side, since the time grows with the sum of the
    sides. Columns are distinct modulo N/2: two columns that differ only in the top bit would coincide up to sign on the
    first N/2 rows, and rank would be lost when n is close to N/2.
    """

    by_site: ClassVar[frozenset[str]] = frozenset(["columns", "signs"])

    columns: Tensor
    signs: Tensor
    left: Tensor
    right: Tensor
    outer: Tensor | None

    TWO_SIDES = 2**14
    """The longest vector that is transformed as two sides; three are three times faster from 2**15 on."""

    def __init__(self, streams: Sequence[Streams], n: int, k: int) -> None:
        super().__init__(streams, n, k)
        size = self.transform_size(n, k)
        log2 = size.bit_length() - 1
        bits = log2 // 3 if size > self.TWO_SIDES else 0
        self.sides = (1 << bits, 1 << (log2 - bits + 1) // 2, 1 << (log2 - bits) // 2)
        columns, signs = [], []
        for site in streams:
            low = rng.permutation(site.key("hadamard.columns"), size // 2, k)
            top = rng.bits(site.key("hadamard.top"), k).astype(np.int64)
            columns.append(low + top * (size // 2))
            signs.append(rng.signs(site.key("hadamard.signs"), n))
        self.register_buffer("columns", torch.from_numpy(np.stack(columns)), persistent=False)
        self.register_buffer("signs", torch.from_numpy(np.stack(signs)), persistent=False)
        outer, left, right = self.sides
        self.register_buffer("outer", _sylvester(outer) if outer > 1 else None, persistent=False)
        self.register_buffer("left", _sylvester(left), persistent=False)
        self.register_buffer("right", _sylvester(right), persistent=False)
        self.scale = 1.0 / math.sqrt(3 * k)

    @staticmethod
    def transform_size(n: int, k: int) -> int:
        """N, the smallest power of two >= max(n, 2k)."""
        return 1 << (max(n, 2 * k) - 1).bit_length()

    @staticmethod
    def room(n: int, k: int) -> int:
        """See `Basis.room`: the vectors that are transformed are longer."""
        return Hadamard.transform_size(n, k)

    @staticmethod
    def words_used(n: int, k: int) -> dict[str, int]:
        """See `Basis.words_used`."""
        return {
            "hadamard.columns": Hadamard.transform_size(n, k) // 2,
            "hadamard.top": -(-k // 64),
            "hadamard.signs": -(-n // 64),
        }

    def expand(self, coefficients: Tensor) -> Tensor:
        """See `Basis.expand`."""
        spread = coefficients.new_zeros(*coefficients.shape[:-1], math.prod(self.sides))
        spread.scatter_(-1, self.columns.expand(coefficients.shape), coefficients * self.scale)
        return self._transform(spread)[..., : self.n] * self.signs

    def adjoint(self, gradient: Tensor) -> Tensor:
        """See `Basis.adjoint`. A Hadamard matrix is symmetric, so the transform is its own adjoint."""
        padded = nn.functional.pad(gradient * self.signs, (0, math.prod(self.sides) - self.n))
        return self._transform(padded).gather(1, self.columns) * self.scale

    def _transform(self, vectors: Tensor) -> Tensor:
        outer, left, right = self.sides
        transformed = self.left @ vectors.view(-1, left, right) @ self.right
        if self.outer is not None:
            transformed = self.outer @ transformed.view(-1, outer, left * right)
        return transformed.view(vectors.shape)


class Uniform(Basis):
    """`G[i, j] ~ U(-1, 1) / sqrt(k)`; basis vector j starts at word `j * ceil(n / 4)` of its stream.

    Small bases stay in memory as 16-bit lanes, which are exact; larger ones are drawn again in every pass, a block of
    vectors at a time.
    """

    by_site: ClassVar[frozenset[str]] = frozenset(["resident"])

    RESIDENT_BYTES = 256 * 2**20
    BLOCK_ENTRIES = 2**22

    resident: Tensor | None

    def __init__(self, streams: Sequence[Streams], n: int, k: int) -> None:
        super().__init__(streams, n, k)
        self.keys = [site.key("uniform") for site in streams]
        self.block = max(1, self.BLOCK_ENTRIES // n)
        self.scale = 1.0 / math.sqrt(k)
        resident = None
        if 2 * n * k * len(self.keys) <= self.RESIDENT_BYTES:
            resident = torch.stack([self._draw(site, 0, k) for site in range(len(self.keys))])
        self.register_buffer("resident", resident, persistent=False)

    @staticmethod
    def words_used(n: int, k: int) -> dict[str, int]:
        """See `Basis.words_used`."""
        return {"uniform": k * -(-n // 4)}

    def expand(self, coefficients: Tensor) -> Tensor:
        """See `Basis.expand`."""
        rows = []
        for site, row in enumerate(coefficients.unbind(-2)):
            total = row.new_zeros(*row.shape[:-1], self.n)
            for start, vectors in self._blocks(site, row.device):
                total = total + row[..., start : start + len(vectors)] @ vectors
            rows.append(total)
        return torch.stack(rows, -2) * self.scale

    def adjoint(self, gradient: Tensor) -> Tensor:
        """See `Basis.adjoint`."""
        rows = [
            torch.cat([vectors @ row for _, vectors in self._blocks(site, row.device)])
            for site, row in enumerate(gradient)
        ]
        return torch.stack(rows) * self.scale

    def _blocks(self, site: int, device: torch.device) -> Iterator[tuple[int, Tensor]]:
        for start in range(0, self.k, self.block):
            stop = min(start + self.block, self.k)
            if self.resident is not None:
                lanes = self.resident[site, start:stop]
            else:
                lanes = self._draw(site, start, stop).to(device)
            yield start, (lanes.float() * 2 + 1) / 65536

    def _draw(self, site: int, start: int, stop: int) -> Tensor:
        """Lanes of basis vectors `start .. stop - 1`, minus 32768 so that they fit int16: `(stop - start, n)`."""
        per_vector = -(-self.n // 4)
        drawn = rng.lanes(self.keys[site], 4 * per_vector * (stop - start), start * per_vector)
        lanes = drawn.reshape(stop - start, 4 * per_vector)[:, : self.n]
        return torch.from_numpy((lanes ^ np.uint16(0x8000)).view(np.int16))


class Group(Basis):
    """Entry i is coefficient `group(i)` times a sign, over the square root of the group's size: an isometry.

    The groups of a site with coefficients of its own are balanced, so that none is empty. Those of sites that share
    coefficients fill independently of one another.
    """

    by_site: ClassVar[frozenset[str]] = frozenset(["groups", "signs", "scales"])

    groups: Tensor
    signs: Tensor
    scales: Tensor

    def __init__(self, streams: Sequence[Streams], n: int, k: int) -> None:
        super().__init__(streams, n, k)
        self.keys = [site.key("group") for site in streams]
        self.factor, self.site = streams[0].factor, streams[0].site
        signs = np.stack([rng.signs(site.key("group.signs"), n) for site in streams])
        self.register_buffer("groups", torch.zeros(len(streams), n, dtype=torch.int64, device="cpu"), persistent=False)
        self.register_buffer("signs", torch.from_numpy(signs), persistent=False)
        self.register_buffer(
            "scales", torch.zeros(len(streams), k, dtype=torch.float32, device="cpu"), persistent=False
        )

    def settle(self, bases: Sequence[Basis] | None) -> None:
        """See `Basis.settle`. The size of a group that sites share is its total over all factors."""
        if bases is None:
            if self.k > self.n:
                raise UsageError(
                    f"--basis group: k {self.k} is more than the {self.n} entries of factor {self.factor} at "
                    f"{self.site}; choose a smaller --k (for a head: --head-k) or another --basis"
                )
            for groups, scales, key in zip(self.groups, self.scales, self.keys, strict=True):
                groups[torch.from_numpy(rng.order(key, self.n))] = torch.arange(self.n, device="cpu") % self.k
                scales.copy_(_inverse_roots(np.bincount(groups.numpy(), minlength=self.k)))
            return
        sharing = [basis for basis in bases if isinstance(basis, Group)]
        if self is not sharing[0]:
            return
        for basis in sharing:
            for groups, key in zip(basis.groups, basis.keys, strict=True):
                groups.copy_(torch.from_numpy(rng.buckets(key, basis.n, basis.k)))
        sizes = sum(np.bincount(basis.groups.flatten().numpy(), minlength=self.k) for basis in sharing)
        for basis in sharing:
            basis.scales.copy_(_inverse_roots(np.asarray(sizes)))
        if empty := int((np.asarray(sizes) == 0).sum()):
            warnings.warn(
                f"--basis group leaves {empty} of {self.k} coefficients without an entry in any factor "
                f"{self.factor}; they have no effect, and a smaller --k saves them",
                stacklevel=2,
            )

    @staticmethod
    def words_used(n: int, k: int) -> dict[str, int]:
        """See `Basis.words_used`."""
        return {"group": n, "group.signs": -(-n // 64)}

    def expand(self, coefficients: Tensor) -> Tensor:
        """See `Basis.expand`."""
        scaled = coefficients * self.scales
        return scaled.gather(-1, self.groups.expand(*scaled.shape[:-1], -1)) * self.signs

    def adjoint(self, gradient: Tensor) -> Tensor:
        """See `Basis.adjoint`."""
        sums = gradient.new_zeros(len(gradient), self.k)
        return sums.scatter_add_(1, self.groups, gradient * self.signs) * self.scales


BASES: dict[str, type[Basis]] = {"hadamard": Hadamard, "uniform": Uniform, "group": Group}


def _inverse_roots(sizes: NDArray[np.int64]) -> Tensor:
    """`1 / sqrt(size)` of every group, float32; 0 for an empty one."""
    return torch.from_numpy(np.where(sizes > 0, 1.0 / np.sqrt(np.maximum(sizes, 1)), 0.0).astype(np.float32))


def _sylvester(size: int) -> Tensor:
    """The Hadamard matrix `H[i, j] = (-1)^popcount(i AND j)`, float32, `(size, size)`; size is a power of two."""
    matrix = torch.ones(1, 1, dtype=torch.float32, device="cpu")
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix
