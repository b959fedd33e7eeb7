"""The test vectors of docs/adapter-format.md: the naive reader gives what the page prints, and the library the same."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import naive_reader
import numpy as np
import pytest
import torch
from torch import nn

import capaft
from capaft.adapter.file.encoding import encode_tensor
from capaft.factors.basis import BASES
from capaft.factors.capaboost import Copies
from capaft.factors.factor import Factor
from capaft.factors.rng import Streams

PAGE = (Path(__file__).parents[3] / "docs" / "adapter-format.md").read_text(encoding="utf-8")
SEED = 7
DOWN = (SEED, "query", "down")
C = [1.0, -2.0, 0.5]
VALUES = [0.5, -1.0, 0.25, 0.0, 0.001]
INNER, OUTER = [0.5, -1.0], [2.0, 1.0, -0.5]
HEAD = (SEED, "classifier.dense", "head:weight")


def shown(values: Any) -> str:
    """Numbers as the page prints them."""
    return np.array2string(np.asarray(values), precision=6, floatmode="fixed", separator=", ", max_line_width=120)


def first_words(streams: tuple[int, str, str], purpose: str, count: int = 2) -> str:
    return " ".join(f"{word:016x}" for word in naive_reader.words(naive_reader.key_of(*streams, purpose), count))


def groups(site: str, n: int, k: int) -> tuple[list[int], list[int]]:
    """Group of each entry of a factor `down` at a site that shares coefficients, and its sign."""
    streams = (SEED, site, "down")
    taken = naive_reader.buckets(naive_reader.key_of(*streams, "group"), n, k)
    return taken.tolist(), naive_reader.signs(naive_reader.key_of(*streams, "group.signs"), n).tolist()


def key_vector() -> list[str]:
    lines = []
    for site in ("query", 'café "é\\😀', "a\x7fb"):
        text = json.dumps(["capaft/1", SEED, site, "down", "init"], separators=(",", ":"))
        first, second = naive_reader.key_of(SEED, site, "down", "init")
        lines.append(f"{text}  K0 = {first:016x}, K1 = {second:016x}")
    return lines


def uniform_vector() -> list[str]:
    basis = naive_reader.basis("uniform", DOWN, 6, 2)
    whole = (basis * 65536 * math.sqrt(2)).round().astype(int).tolist()
    return [
        f"uniform = {first_words(DOWN, 'uniform', 4)}",
        f"65536 sqrt(2) G = {whole}",
        f"G c = {shown(basis @ C[:2])}",
    ]


def hadamard_vector() -> list[str]:
    basis = naive_reader.basis("hadamard", DOWN, 5, 3)
    whole = (basis * math.sqrt(9)).round().astype(int).tolist()
    return [f"3 G = {whole}", f"G c = {shown(basis @ C)}"]


def group_vector() -> list[str]:
    basis = naive_reader.basis("group", DOWN, 7, 3)
    places = naive_reader.order(naive_reader.key_of(*DOWN, "group"), 7)
    return [
        f"order(7) = {places}",
        f"g = {abs(basis).argmax(1).tolist()}",
        f"e = {np.sign(basis.sum(1)).astype(int).tolist()}",
        f"G c = {shown(basis @ C)}",
    ]


def shared_group_vector() -> list[str]:
    lines, sizes = [], np.zeros(3, int)
    for site, n in (("key", 4), ("query", 7)):
        taken, signs = groups(site, n, 3)
        sizes += np.bincount(taken, minlength=3)
        lines.append(f"{site}: g = {taken}, e = {signs}")
    lines.append(f"|g| = {sizes.tolist()}")
    for site, n in (("key", 4), ("query", 7)):
        lines.append(f"{site}: G c = {shown(naive_reader.basis('group', (SEED, site, 'down'), n, 3, sizes) @ C)}")
    return lines


def mask_vector() -> list[str]:
    random = naive_reader.masks({"copies": 3, "masks": "random", "density": 0.29}, DOWN, 20)
    parted = naive_reader.masks({"copies": 3, "masks": "partition", "density": 1 / 3}, DOWN, 8)
    return [
        f"mask.0 = {first_words(DOWN, 'mask.0')}, kept {[np.flatnonzero(row).tolist() for row in random]}",
        f"mask.partition = {first_words(DOWN, 'mask.partition')}, "
        f"kept {[np.flatnonzero(row).tolist() for row in parted]}",
    ]


def theta0_vector() -> list[str]:
    return [
        f"layer = {shown(naive_reader.theta0('uniform', DOWN, 6, 3))}",
        f"embedding = {shown(naive_reader.theta0('uniform', DOWN, 6, 1))}",
    ]


def stored_vector() -> list[str]:
    lines = []
    for dtype in ("bfloat16", "float16", "int8", "int4"):
        tensors = encode_tensor("x", torch.tensor(VALUES), dtype)
        cells = {name: tensor.view(torch.uint8).numpy().tobytes() for name, tensor in tensors.items()}
        back = naive_reader.decode(dtype, "x", cells)[: len(VALUES)].tolist()
        scale = f", scale:x {cells['scale:x'].hex(' ')}" if "scale:x" in cells else ""
        lines.append(f"{dtype}: x {cells['x'].hex(' ')}{scale}; read back {back}")
    return lines


def vera_method() -> dict[str, Any]:
    return {"method": "vera", "rank": 2}


def vera_parts() -> dict[str, np.ndarray[Any, Any]]:
    frozen = (SEED, "")
    return {
        "down": naive_reader.theta0("uniform", (*frozen, "down"), 8, 4).reshape(2, 4),
        "up": naive_reader.theta0("uniform", (*frozen, "up"), 6, 2).reshape(3, 2),
        "inner": np.array(INNER),
        "outer": np.array(OUTER),
    }


def vera_vector() -> list[str]:
    parts = vera_parts()
    site = naive_reader.Site("query", 3, 4)
    update = naive_reader.merged({"method": vera_method()}, np.zeros((3, 4)), site, parts)
    return [
        *(f"{name} = {shown(parts[name].flatten())}" for name in ("down", "up")),
        *(f"dW[{i}] = {shown(row)}" for i, row in enumerate(update)),
    ]


def head_vector() -> list[str]:
    basis = naive_reader.basis("hadamard", HEAD, 6, 3)
    return [f"3 G = {(basis * 3).round().astype(int).tolist()}", f"G c = {shown((basis @ C).reshape(2, 3).flatten())}"]


VECTORS = {
    "keys": key_vector,
    "uniform": uniform_vector,
    "hadamard": hadamard_vector,
    "group": group_vector,
    "shared group": shared_group_vector,
    "masks": mask_vector,
    "theta0": theta0_vector,
    "stored": stored_vector,
    "vera": vera_vector,
    "head": head_vector,
}


@pytest.mark.parametrize("name", VECTORS)
def test_the_page_has_what_the_naive_reader_gives(name: str) -> None:
    section = PAGE.partition("## 13. Test vectors")[2]
    assert [line for line in VECTORS[name]() if f"    {line}\n" not in section] == []


@pytest.mark.parametrize(("kind", "n", "k"), [("uniform", 6, 2), ("hadamard", 5, 3), ("group", 7, 3)])
def test_the_library_has_the_same_bases(kind: str, n: int, k: int) -> None:
    basis = BASES[kind]([Streams(*DOWN)], n, k)
    basis.settle(None)
    expected = naive_reader.basis(kind, DOWN, n, k) @ C[:k]
    np.testing.assert_allclose(basis.expand(torch.tensor([C[:k]]))[0].numpy(), expected, atol=1e-6)


def test_the_library_shares_coefficients_in_the_same_way() -> None:
    bases = [BASES["group"]([Streams(SEED, site, "down")], n, 3) for site, n in (("key", 4), ("query", 7))]
    for basis in bases:
        basis.settle(bases)
    lines = [
        f"{site}: G c = {shown(basis.expand(torch.tensor([C]))[0].double().numpy().round(6))}"
        for site, basis in zip(("key", "query"), bases, strict=True)
    ]
    assert lines == shared_group_vector()[-2:]


def test_the_library_draws_the_same_masks() -> None:
    for kind, density, n in (("random", 0.29, 20), ("partition", 1 / 3, 8)):
        expected = naive_reader.masks({"copies": 3, "masks": kind, "density": density}, DOWN, n)
        drawn = Copies(3, density, kind).draw(Factor("down", (1, n), hidden_axis=0), Streams(*DOWN))  # type: ignore[arg-type]
        np.testing.assert_array_equal(drawn, expected)


class Small(nn.Module):
    """A projection to adapt, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(4, 3, bias=False)
        self.classifier = nn.Sequential()
        self.classifier.add_module("dense", nn.Linear(3, 2, bias=False))
        with torch.no_grad():
            self.query.weight.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.query(x))


def test_the_library_has_the_same_vera() -> None:
    model = Small()
    adapter = capaft.attach(model, "vera", rank=2, seed=SEED, targets="query")
    with torch.no_grad():
        adapter.role_parameters["inner"].copy_(torch.tensor(INNER))
        adapter.role_parameters["outer"].copy_(torch.tensor(OUTER))
    capaft.merge(model)
    site = naive_reader.Site("query", 3, 4)
    expected = naive_reader.merged({"method": vera_method()}, np.zeros((3, 4)), site, vera_parts())
    np.testing.assert_allclose(model.query.weight.detach().numpy(), expected, atol=1e-6)


def test_the_library_has_the_same_head() -> None:
    model = Small()
    before = model.classifier.dense.weight.detach().clone()
    adapter = capaft.attach(
        model, "lora", rank=1, seed=SEED, targets="query", head=["classifier.dense.weight"], head_mode="nola", head_k=3
    )
    with torch.no_grad():
        adapter.role_parameters["head"].copy_(torch.tensor([C]))
    moved = (model.classifier.dense.weight - before).detach().flatten().numpy()
    np.testing.assert_allclose(moved, naive_reader.basis("hadamard", HEAD, 6, 3) @ C, atol=1e-6)
