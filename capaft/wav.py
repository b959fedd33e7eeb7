"""WAV files of plain samples -> float32.

The standard library's `wave` knows neither floats nor, before Python 3.12, the extensible header that is usual
above 16 bits.
"""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_UNKNOWN_SIZE = 0xFFFFFFFF


def decode(content: bytes) -> tuple[NDArray[np.float32], int] | None:
    """Samples in [-1, 1] (`(frames, channels)`) and their rate, or None if this is no WAV file of plain samples.

    Raises:
        ValueError: the file is damaged.
    """
    if content[:4] != b"RIFF" or content[8:12] != b"WAVE":
        return None
    header, samples = _chunks(content)
    if len(header) < 16:
        raise ValueError("it has no format header")
    kind, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", header)
    if kind == _EXTENSIBLE and len(header) >= 26:
        (kind,) = struct.unpack_from("<H", header, 24)
    if channels == 0 or rate == 0:
        raise ValueError(f"its header says {channels} channels and {rate} samples a second")
    frame = channels * bits // 8
    decoded = _decode(samples[: len(samples) // frame * frame], kind, bits) if frame else None
    return None if decoded is None else (decoded.reshape(-1, channels), rate)


def _chunks(content: bytes) -> tuple[memoryview, memoryview]:
    """The format header and the samples."""
    view = memoryview(content)
    header = view[:0]
    at = 12
    while at + 8 <= len(view):
        name, size = struct.unpack_from("<4sI", view, at)
        body = view[at + 8 : at + 8 + size]
        if name == b"fmt ":
            header = body
        if name == b"data":
            # What wrote to a pipe could not go back to fill in the size.
            if len(body) < size != _UNKNOWN_SIZE:
                raise ValueError(f"it is cut off: {size} bytes of samples promised, {len(body)} there")
            return header, body
        at += 8 + size + size % 2
    raise ValueError("it holds no samples")


def _decode(samples: memoryview, kind: int, bits: int) -> NDArray[np.float32] | None:
    if kind == _FLOAT and bits in (32, 64):
        return np.frombuffer(samples, np.dtype(f"<f{bits // 8}")).astype(np.float32)
    if kind != _PCM:
        return None
    if bits == 8:
        return (np.frombuffer(samples, np.uint8).astype(np.float32) - np.float32(128)) / np.float32(128)
    if bits == 24:
        widened = np.zeros((len(samples) // 3, 4), np.uint8)
        widened[:, 1:] = np.frombuffer(samples, np.uint8).reshape(-1, 3)
        return (widened.view(np.dtype("<i4"))[:, 0] / 2**31).astype(np.float32)
    if bits in (16, 32):
        integers = np.frombuffer(samples, np.dtype(f"<i{bits // 8}"))
        return (integers / 2 ** (bits - 1)).astype(np.float32)
    return None
