"""The mathematics a second time, the slow way: float64, one site, one copy and one basis vector after another.

Only the raw words of the seeded streams come from capaft; they have known-answer tests of their own. What a new
host or basis needs here is its formula, straight from its paper.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import cache
from math import ceil, prod, sqrt
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from capaft import rng
from capaft.attach import Adapter
from capaft.plan import Plan
from capaft.sites import Site

Array = NDArray[np.float64]
Stream = Callable[..., NDArray[np.uint64]]


# Values, from words.


def signs(words: NDArray[np.uint64], n: int) -> Array:
    return np.array([1.0 if int(words[i // 64]) >> i % 64 & 1 else -1.0 for i in range(n)])


def uniforms(words: NDArray[np.uint64], n: int) -> Array:
    lanes = [int(words[i // 4]) >> 16 * (i % 4) & 0xFFFF for i in range(n)]
    return np.array([(2 * lane + 1 - 65536) / 65536 for lane in lanes])


def order(words: NDArray[np.uint64]) -> list[int]:
    return sorted(range(len(words)), key=lambda i: (int(words[i]), i))


def buckets(words: NDArray[np.uint64], count: int) -> list[int]:
    return [((int(word) >> 32) * count) >> 32 for word in words]


# Bases: the columns of G, one by one.


def uniform_basis(stream: Stream, n: int, k: int) -> Array:
    per_vector = ceil(n / 4)
    words = stream("uniform", k * per_vector)
    vectors = [uniforms(words[j * per_vector : (j + 1) * per_vector], n) for j in range(k)]
    return np.stack(vectors, 1) / sqrt(k)


def hadamard_basis(stream: Stream, n: int, k: int) -> Array:
    size = 1
    while size < max(n, 2 * k):
        size *= 2
    positions = order(stream("hadamard.columns", size // 2))
    top = signs(stream("hadamard.top", ceil(k / 64)), k) > 0
    columns = [positions[j] + int(top[j]) * (size // 2) for j in range(k)]
    rows = signs(stream("hadamard.signs", ceil(n / 64)), n)
    parity = [[(i & column).bit_count() % 2 for column in columns] for i in range(n)]
    return rows[:, None] * (1.0 - 2.0 * np.array(parity)) / sqrt(3 * k)


def group_basis(stream: Stream, n: int, k: int) -> Array:
    group = buckets(stream("group", n), k)
    sign = signs(stream("group.signs", ceil(n / 64)), n)
    basis = np.zeros((n, k))
    for i, j in enumerate(group):
        basis[i, j] = sign[i] / sqrt(group.count(j))
    return basis


BASES = {"uniform": uniform_basis, "hadamard": hadamard_basis, "group": group_basis}


@cache
def basis(kind: str, seed: int, site: str, role: str, n: int, k: int) -> Array:
    return BASES[kind](_stream(seed, site, role), n, k)


# Masks.


@cache
def masks(seed: int, site: str, role: str, n: int, copies: int, density: float, kind: str) -> NDArray[np.bool_]:
    """Which of a factor's n numbers each copy keeps, `(copies, n)`."""
    stream = _stream(seed, site, role)
    if kind == "partition":
        owner = buckets(stream("mask.partition", n), copies)
        return np.array([[own == j for own in owner] for j in range(copies)])
    kept = int(Fraction(str(density)) * n)
    chosen = [set(order(stream(f"mask.{j}", n))[:kept]) for j in range(copies)]
    return np.array([[i in each for i in range(n)] for each in chosen])


# Hosts: the shapes of their factors, how these start, and what they add to a layer's output.


class Lora:
    @staticmethod
    def shapes(site: Site, host: Any) -> dict[str, tuple[int, ...]]:
        return {"down": (host.rank, site.in_features), "up": (site.out_features, host.rank)}

    @staticmethod
    def initial_bound(site: Site) -> dict[str, float]:
        return {"down": 1 / sqrt(site.in_features), "up": 0.0}

    @staticmethod
    def forward(x: Tensor, y: Tensor, copies: list[dict[str, Tensor]], host: Any) -> Tensor:
        for copy in copies:
            y = y + host.alpha / host.rank * ((x @ copy["down"].T) @ copy["up"].T)
        return y

    @staticmethod
    def update(copies: list[dict[str, Tensor]], host: Any) -> Tensor:
        return sum(host.alpha / host.rank * copy["up"] @ copy["down"] for copy in copies)


HOSTS = {"lora": Lora}


# Adapters.


def shapes(plan: Plan, site: Site) -> dict[str, tuple[int, ...]]:
    return HOSTS[plan.stack.host.name].shapes(site, plan.stack.host)


def count(plan: Plan, site: Site, role: str) -> int:
    """How many numbers a site trains for a factor."""
    n, stack = prod(shapes(plan, site)[role]), plan.stack
    if stack.k:
        return stack.k[0 if role == "down" else 1]
    return int(site_masks(plan, site, role).any(0).sum()) if stack.copies else n


def site_masks(plan: Plan, site: Site, role: str) -> NDArray[np.bool_]:
    n, copies = prod(shapes(plan, site)[role]), plan.stack.copies
    if copies is None:
        return np.ones((1, n), dtype=bool)
    return masks(plan.seed, site.path, role, n, copies.copies, copies.density, copies.masks)


def factor(adapter: Adapter, site: Site, role: str) -> Array:
    """The factor before it is copied, flat."""
    plan, stack = adapter.plan, adapter.plan.stack
    n = prod(shapes(plan, site)[role])
    numbers = adapter.numbers[role].detach().double().cpu().flatten().numpy()
    start = 0
    for other in sorted(plan.sites, key=lambda other: (shapes(plan, other)[role], other.path)):
        if other.path == site.path:
            break
        start += count(plan, other, role)
    own = numbers[start : start + count(plan, site, role)]
    if stack.k is None:
        flat = np.zeros(n)
        flat[site_masks(plan, site, role).any(0)] = own
        return flat
    bound = HOSTS[stack.host.name].initial_bound(site)[role]
    total = uniforms(_stream(plan.seed, site.path, role)("init", ceil(n / 4)), n) * bound
    for coefficient, vector in zip(own, basis(stack.basis, plan.seed, site.path, role, n, len(own)).T, strict=True):
        total = total + coefficient * vector
    return total


def copies(adapter: Adapter, site: Site) -> list[dict[str, Tensor]]:
    """Every copy's masked factors by role."""
    roles = {
        role: (factor(adapter, site, role) * site_masks(adapter.plan, site, role), shape)
        for role, shape in shapes(adapter.plan, site).items()
    }
    width = adapter.plan.stack.copies.copies if adapter.plan.stack.copies else 1
    return [
        {role: torch.from_numpy(masked[j]).view(shape) for role, (masked, shape) in roles.items()} for j in range(width)
    ]


def update(adapter: Adapter, site: Site) -> Tensor:
    """dW of a site, `(out, in)`."""
    return HOSTS[adapter.plan.stack.host.name].update(copies(adapter, site), adapter.plan.stack.host)


def adapted(base: nn.Module, *adapters: Adapter) -> nn.Module:
    """The base model in float64 with the adapters' part added to every site's output; `base` is changed in place."""
    base = base.cpu().double()
    for adapter in adapters:
        for site in adapter.plan.sites:
            base.get_submodule(site.module).register_forward_hook(_hook(adapter, site))
    return base


def _hook(adapter: Adapter, site: Site) -> Callable[..., Tensor]:
    host, wide = adapter.plan.stack.host, copies(adapter, site)

    def add(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        outputs = slice(site.start, site.start + site.out_features)
        changed = output.clone()
        changed[..., outputs] = HOSTS[host.name].forward(args[0], output[..., outputs], wide, host)
        return changed

    return add


def _stream(seed: int, site: str, role: str) -> Stream:
    return lambda purpose, count: rng.words(rng.fold_in(seed, site, role, purpose), count)
