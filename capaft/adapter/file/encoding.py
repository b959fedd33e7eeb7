"""Store parameters in fewer bits: float32, bfloat16, float16, or int8 and int4 with one scale per 128 values."""

from __future__ import annotations

import math
from typing import get_args

import torch
from torch import Tensor

from capaft.config.choices import SaveDtype

SAVE_DTYPES: tuple[SaveDtype, ...] = get_args(SaveDtype)
BLOCK = 128
# In front of the name of a tensor, that of its block scales. No parameter can be called so: a factor's name has no
# colon, and all other names start with `head:`.
SCALE = "scale:"
# Bytes of a stored value, by the safetensors name of its type.
DTYPE_BYTES = {"F32": 4, "BF16": 2, "F16": 2, "I8": 1, "U8": 1}

_FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_LEVELS = {"int8": 127, "int4": 7}
_DTYPE_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int8: "I8", torch.uint8: "U8"}


def dtype_name(tensor: Tensor) -> str:
    """The safetensors name of a stored tensor's type."""
    return _DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype))


def encode_tensor(name: str, parameter: Tensor, dtype: SaveDtype) -> dict[str, Tensor]:
    """The stored tensors of one parameter: itself, cast, or flat integers and their block scales.

    Integers are `round(x / scale)` with `scale = absmax / levels` over blocks of 128 values in row-major order
    (levels 127 or 7). int4 packs two values into a byte, offset by 8, the earlier one in the low half.
    """
    values = parameter.detach().float().cpu().contiguous()
    if dtype in _FLOATS:
        return {name: values.to(_FLOATS[dtype])}
    flat = values.flatten()
    padded = torch.nn.functional.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
    scales = padded.abs().amax(1) / _LEVELS[dtype]
    safe = torch.where(scales > 0, scales, torch.ones_like(scales))
    # Clamped, since the scale of a block of subnormal values is coarse.
    rounded = (padded / safe[:, None]).round().clamp(-_LEVELS[dtype], _LEVELS[dtype])
    levels = rounded.flatten()[: len(flat)].to(torch.int8)
    if dtype == "int4":
        nibbles = torch.nn.functional.pad(levels + 8, (0, len(levels) % 2)).to(torch.uint8).view(-1, 2)
        return {name: nibbles[:, 0] | nibbles[:, 1] << 4, SCALE + name: scales}
    return {name: levels, SCALE + name: scales}


def encoded_layout(name: str, shape: tuple[int, ...], dtype: SaveDtype) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Safetensors dtype and shape, by tensor name, of what `encode_tensor` makes of a parameter of this shape."""
    count = math.prod(shape)
    scales: dict[str, tuple[str, tuple[int, ...]]] = {SCALE + name: ("F32", (-(-count // BLOCK),))}
    match dtype:
        case "float32":
            return {name: ("F32", shape)}
        case "bfloat16":
            return {name: ("BF16", shape)}
        case "float16":
            return {name: ("F16", shape)}
        case "int8":
            return {name: ("I8", (count,))} | scales
        case "int4":
            return {name: ("U8", (-(-count // 2),))} | scales


def decode_tensor(name: str, stored: dict[str, Tensor], shape: tuple[int, ...], dtype: SaveDtype) -> Tensor:
    """The float32 parameter from its stored tensors."""
    values = stored[name]
    if dtype in _FLOATS:
        return values.float()
    count = math.prod(shape)
    if dtype == "int4":
        values = torch.stack([values & 15, values >> 4], 1).flatten()[:count].to(torch.int8) - 8
    scales = stored[SCALE + name].repeat_interleave(BLOCK)[:count]
    return (values.float() * scales).view(shape)
