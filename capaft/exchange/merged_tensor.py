"""One tensor of a merged model, described before it is made, and the bytes of values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from capaft.model.checkpoint_tensors import StoredTensor

_CAST = 2**22

_CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True, eq=False)
class MergedTensor:
    """One tensor to write.

    Attributes:
        name: its name.
        code: its dtype, as safetensors calls it.
        shape: its shape.
        size: its bytes.
        home: the file of the base's checkpoint that it comes from; None if it comes from none.
        bytes: gives its bytes, a few at a time.
    """

    name: str
    code: str
    shape: torch.Size
    size: int
    home: Path | None
    bytes: Callable[[], Iterator[Any]]


def described(
    name: str, shape: torch.Size, dtype: torch.dtype, home: Path | None, make: Callable[[], Iterator[Any]]
) -> MergedTensor:
    """A tensor of values in a dtype.

    Args:
        name: its name.
        shape: its shape.
        dtype: its dtype.
        home: the file of the base's checkpoint that it comes from; None if it comes from none.
        make: gives its bytes, a few at a time.
    """
    return MergedTensor(name, _CODES[dtype], shape, shape.numel() * dtype.itemsize, home, make)


def raw(values: Tensor, dtype: torch.dtype) -> Iterator[Any]:
    """The bytes of values in a dtype, in the order of their rows."""
    flat = values.detach().reshape(-1)
    step = len(flat) if values.dtype == dtype else _CAST
    for start in range(0, len(flat), max(1, step)):
        yield flat[start : start + step].to(dtype).view(torch.uint8).numpy().data


def cast(source: StoredTensor, dtype: torch.dtype) -> Iterator[Any]:
    """The bytes of a stored tensor in another dtype."""
    assert source.dtype is not None
    for piece in source.pieces():
        yield from raw(torch.frombuffer(piece, dtype=source.dtype), dtype)
