"""Laws of stored parameters, over every save dtype: bounded errors, known sizes, nothing worse."""

from __future__ import annotations

from typing import Any

import naive_reader
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from torch import Tensor

from capaft.adapter.file.encoding import BLOCK, SAVE_DTYPES, SaveDtype, decode_tensor, encode_tensor, encoded_layout

EVERY = pytest.mark.parametrize("dtype", SAVE_DTYPES)
SHAPES = st.one_of(array_shapes(max_dims=3, max_side=12), st.integers(1, 400).map(lambda n: (n,)), st.just(()))
SAFETENSORS_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"} | {
    torch.int8: "I8",
    torch.uint8: "U8",
}


def float_arrays(largest: float = 6e4) -> Any:
    """Arrays of float32 of any shape, of magnitudes that every dtype can hold."""
    return SHAPES.flatmap(lambda shape: arrays(np.float32, shape, elements=st.floats(-largest, largest, width=32)))


def there_and_back(values: Tensor, dtype: SaveDtype) -> Tensor:
    return decode_tensor("x", encode_tensor("x", values, dtype), tuple(values.shape), dtype)


def allowed(values: np.ndarray[Any, Any], dtype: SaveDtype) -> Any:
    """The largest error: half a unit in the last place of a float, half a step of the block's scale."""
    exact = abs(values.astype(np.float64))
    if dtype == "float32":
        return 0 * exact
    if dtype == "bfloat16":
        return np.maximum(exact * 2**-8, 2**-134)
    if dtype == "float16":
        return np.maximum(exact * 2**-11, 2**-25)
    levels = {"int8": 127, "int4": 7}[dtype]
    flat = exact.flatten()
    largest = [flat[start : start + BLOCK].max() for start in range(0, len(flat), BLOCK)]
    steps = np.repeat(largest, BLOCK)[: len(flat)] / levels
    # A subnormal scale is itself rounded, by at most half of 2**-149.
    return (steps * (0.5 + 1e-4) + levels * 2**-150).reshape(values.shape)


@EVERY
@given(values=float_arrays())
@settings(max_examples=40, deadline=None)
@example(values=np.zeros((3, 5), np.float32))
@example(values=np.full(200, 1e-44, np.float32))
@example(values=np.array([2e-44, 1e-45, 0], np.float32))
def test_the_error_is_bounded(dtype: SaveDtype, values: Any) -> None:
    restored = there_and_back(torch.from_numpy(values), dtype)
    assert restored.dtype == torch.float32
    assert restored.shape == values.shape
    assert (abs(restored.numpy().astype(np.float64) - values) <= allowed(values, dtype)).all()


@EVERY
@given(values=float_arrays())
@settings(max_examples=40, deadline=None)
def test_layout_is_what_encode_makes(dtype: SaveDtype, values: Any) -> None:
    stored = encode_tensor("x", torch.from_numpy(values), dtype)
    layout = {name: (SAFETENSORS_NAMES[tensor.dtype], tuple(tensor.shape)) for name, tensor in stored.items()}
    assert layout == encoded_layout("x", values.shape, dtype)


@EVERY
@given(values=float_arrays())
@settings(max_examples=40, deadline=None)
def test_a_naive_reader_finds_the_same(dtype: SaveDtype, values: Any) -> None:
    stored = encode_tensor("x", torch.from_numpy(values), dtype)
    raw = {name: tensor.flatten().view(torch.uint8).numpy().tobytes() for name, tensor in stored.items()}
    naive = naive_reader.decode(dtype, "x", raw)[: values.size]
    assert naive.tolist() == there_and_back(torch.from_numpy(values), dtype).flatten().tolist()


@EVERY
@given(values=float_arrays())
@settings(max_examples=40, deadline=None)
def test_storing_again_changes_nothing_more(dtype: SaveDtype, values: Any) -> None:
    once = there_and_back(torch.from_numpy(values), dtype)
    twice = there_and_back(once, dtype)
    assert (abs((twice - once).numpy()) <= 1e-6 * abs(once.numpy()) + 2**-140).all()


@EVERY
@pytest.mark.parametrize("count", [1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 2 * BLOCK + 1])
def test_block_edges(dtype: SaveDtype, count: int) -> None:
    """A block does not depend on the values of its neighbours, least of all on large ones."""
    small, large = torch.full((BLOCK,), 0.25), torch.full((BLOCK,), 1000.0)
    values = torch.cat([small, large, small])[:count]
    assert torch.allclose(there_and_back(values, dtype), values, rtol=1e-6)


@EVERY
def test_zeros_stay_zeros(dtype: SaveDtype) -> None:
    assert not there_and_back(torch.zeros(7, 41), dtype).any()


@EVERY
def test_the_largest_number_of_a_block_keeps_its_sign(dtype: SaveDtype) -> None:
    values = torch.tensor([-7.0, 7.0, -3.5, 0.0, 1.0])
    restored = there_and_back(values, dtype)
    assert restored[:2].tolist() == pytest.approx([-7, 7], rel=1e-6)
    assert restored[3] == 0


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [
        ("int8", {"x": [127, -64, 0, 18, 1], "scale:x": [7 / 127]}),
        ("int4", {"x": [15 | 4 << 4, 8 | 9 << 4, 8], "scale:x": [1.0]}),
    ],
)
def test_golden_integers(dtype: SaveDtype, stored: dict[str, list[float]]) -> None:
    encoded = encode_tensor("x", torch.tensor([7.0, -3.55, 0.0, 1.0, 0.05]), dtype)
    assert set(encoded) == set(stored)
    for name, tensor in encoded.items():
        assert tensor.tolist() == pytest.approx(stored[name])


@EVERY
def test_gradients_views_and_wider_dtypes_are_no_matter(dtype: SaveDtype) -> None:
    values = torch.arange(12, dtype=torch.float64).view(3, 4).T.requires_grad_()
    plain = values.detach().float().contiguous()
    for name, tensor in encode_tensor("x", values, dtype).items():
        assert torch.equal(tensor, encode_tensor("x", plain, dtype)[name])
        assert not tensor.requires_grad


@EVERY
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_not_finite_does_not_become_one(dtype: SaveDtype, wrong: float) -> None:
    assert not torch.isfinite(there_and_back(torch.tensor([1.0, wrong, 2.0]), dtype)).all()
