"""Adapters do not depend on torch's global state: default dtype and device, autocast, inference mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

import capaft

METHODS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 2},
    "lora+nola": {"rank": 2, "k": 8, "basis": "hadamard"},
    "lora+nola+capaboost": {"rank": 2, "k": 8, "basis": "uniform", "copies": 2},
    "houlsby+nola": {"bottleneck": 2, "k": 3, "basis": "group"},
    "dora+capaboost": {"rank": 2, "copies": 2},
    "vera": {"rank": 8},
    "prefix": {"prefix_length": 2},
    "ia3": {},
}


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def precision(name: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


STATES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "float16": lambda: default_dtype(torch.float16),
    "float64": lambda: default_dtype(torch.float64),
    "deterministic": deterministic,
    "no grad": torch.no_grad,
    "inference mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "meta": lambda: torch.device("meta"),
    "medium precision": lambda: precision("medium"),
}
# States under which a forward means the same.
NEUTRAL = ["bfloat16", "float16", "float64", "deterministic"]


def course(method: str, path: Path, state: Callable[[], Any], steps: Callable[[], Any]) -> tuple[bytes, Tensor]:
    """The bytes of an adapter that was attached, saved, loaded, trained and saved again, and its logits."""
    model = tiny.bert()
    with state():
        capaft.attach(model, method, seed=3, head=["classifier.weight"], head_mode="nola", head_k=8, **METHODS[method])
        capaft.save(model, path)
        capaft.detach(model)
        adapter = capaft.load(model, path)
    tiny.scramble(adapter)
    with steps():
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        tiny.logits(model).square().sum().backward()
        optimizer.step()
        logits = tiny.logits(model)
    with state():
        capaft.save(model, path)
        capaft.detach(model)
        capaft.load(model, path)
    assert torch.equal(tiny.logits(model), logits)
    return path.read_bytes(), logits.detach()


@pytest.mark.parametrize("method", METHODS)
def test_global_state_changes_no_byte(method: str, tmp_path: Path) -> None:
    expected, logits = course(method, tmp_path / "a", nullcontext, nullcontext)
    for name, state in STATES.items():
        steps = state if name in NEUTRAL else nullcontext
        content, actual = course(method, tmp_path / "b", state, steps)
        assert content == expected, name
        assert torch.equal(actual, logits), name


@pytest.mark.parametrize("state", [name for name in STATES if name != "meta"])
@pytest.mark.parametrize("method", ["lora+nola", "dora+capaboost"])
def test_a_merge_is_exact_whatever_surrounds_it(method: str, state: str) -> None:
    merged = []
    for context in (nullcontext, STATES[state]):
        model = tiny.bert()
        tiny.scramble(capaft.attach(model, method, **METHODS[method]))
        with context():
            capaft.merge(model)
        merged.append(dict(model.state_dict()))
    first, second = merged
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_numbers_of_a_default_dtype_reach_no_base() -> None:
    with default_dtype(torch.bfloat16):
        model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
        adapter = capaft.attach(model, "lora+nola", targets="0", rank=2, k=4)
    assert {p.dtype for p in adapter.parameters()} == {torch.float32}
    assert {b.dtype for b in adapter.buffers() if b.is_floating_point()} == {torch.float32}
