"""One image or recording of a data set, in whatever form its row has it -> something to compute with.

`datasets` decodes both by itself, but needs torchcodec for every sound, and its error for a damaged file does
not name the file. So capaft's columns are left undecoded and their values come here, one at a time.
"""

from __future__ import annotations

import importlib
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from capaft import wav
from capaft.support.errors import UsageError, one_line, printable

_MOST_CHANNELS = 4
# Integers that a recording may come in, with the value that stands for 1. Wider ones are no samples.
_FULL_SCALE = {"int16": 2**15, "int32": 2**31}


def open_image(value: Any) -> Image.Image:
    """An image, read and upright, in its own mode (greys of 16 bits and floats as those of 8 bits).

    Args:
        value: an image, a path, the bytes of a file, a record of `path` and `bytes` as in an undecoded column, or
            an array: (height, width), with channels behind or before, of 0 to 255 or of floats from 0 to 1.

    Raises:
        UsageError: there is none, it cannot be read, is damaged, or has greys of another range; names the file.
    """
    if isinstance(value, Image.Image):
        return _in_bytes("image given as Pillow's", value)
    if isinstance(value, list | np.ndarray) or hasattr(value, "__array__"):
        return _image_of_array(value)
    name, content = _content(value, "image")
    try:
        with Image.open(io.BytesIO(content)) as image:
            upright = ImageOps.exif_transpose(image)
    except Exception as error:  # a damaged file surfaces as any of a dozen types
        reason = "it is no image that Pillow knows" if "cannot identify" in str(error) else one_line(error)
        raise UsageError(f"{name}: cannot read this image ({reason}); replace or remove it") from error
    return _in_bytes(name, upright)


def open_audio(value: Any) -> tuple[NDArray[np.float32], int]:
    """A recording as mono samples in [-1, 1], shape (samples,), and how many of them make a second.

    WAV files of plain samples are read here. FLAC, MP3, Ogg and the rest need the package `soundfile`.

    Args:
        value: a path, the bytes of a file, a record of `path` and `bytes` as in an undecoded column, or a record
            of `array` and `sampling_rate`.

    Raises:
        UsageError: there is none, it cannot be read, or it is damaged; the message names the file.
    """
    if isinstance(value, Mapping) and value.get("array") is not None:
        name = printable(str(value.get("path") or "recording given as an array"))
        samples, rate = _samples_of_array(name, value["array"]), _rate(name, value.get("sampling_rate"))
    else:
        name, content = _content(value, "recording")
        samples, rate = _decode(name, content)
    if not (samples.size and np.isfinite(samples).all()):
        what = "not all its samples are finite numbers" if samples.size else "it has no samples"
        raise UsageError(f"{name}: cannot use this recording ({what}); replace or remove it")
    return samples.mean(axis=1, dtype=np.float32), rate


def _content(value: Any, what: str) -> tuple[str, bytes]:
    """What to call a file in an error, and what it holds."""
    path, content = (value.get("path"), value.get("bytes")) if isinstance(value, Mapping) else (value, None)
    if isinstance(value, bytes | bytearray):
        path, content = None, value
    if content is not None:
        return printable(str(path or f"{what} without a file name")), bytes(content)
    if not isinstance(path, str | os.PathLike) or not str(path):
        given = "nothing" if value is None else type(value).__name__
        raise UsageError(f"a row holds {given} where its {what} should be; give the path of a file or drop the row")
    try:
        return printable(str(path)), Path(path).read_bytes()
    except (OSError, ValueError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else one_line(error)
        raise UsageError(
            f"{printable(str(path))}: cannot read this {what} ({reason}); put it back or drop the row"
        ) from error


def _in_bytes(name: str, image: Image.Image) -> Image.Image:
    """An image whose greys have 8 bits: Pillow would clip others, and show almost every pixel as white or black."""
    if not image.mode.startswith(("I", "F")):
        return image
    pixels = np.asarray(image)
    # Greys of 32 bits are a container: what is in them seldom has more than 8 or 16.
    is_deep = image.mode != "F" and (";16" in image.mode or 255 < pixels.max() < 2**16)
    if is_deep and pixels.min() >= 0:
        pixels = pixels >> 8
    try:
        return Image.fromarray(_bytes_of_pixels(pixels))
    except UsageError:
        raise UsageError(
            f"{name}: the greys of this image go from {pixels.min():g} to {pixels.max():g}; "
            "store whole numbers from 0 to 65535 or floats from 0 to 1, or remove it"
        ) from None


def _image_of_array(value: Any) -> Image.Image:
    try:
        pixels = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise UsageError(f"an image given as an array is not one ({one_line(error)})") from error
    if pixels.ndim == 3 and pixels.shape[0] in (1, 3, 4) and pixels.shape[2] > _MOST_CHANNELS:
        pixels = np.moveaxis(pixels, 0, 2)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if not pixels.size or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))):
        raise UsageError(
            f"an image is an array of shape {pixels.shape}; give (height, width) or (height, width, 3 or 4)"
        )
    return Image.fromarray(np.ascontiguousarray(_bytes_of_pixels(pixels)))


def _bytes_of_pixels(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    top = 1 if pixels.dtype.kind in "fb" else 255
    # Written so that a NaN fails as well.
    if pixels.dtype.kind not in "fbiu" or not (pixels.min() >= 0 and pixels.max() <= top):
        raise UsageError(
            f"an image given as an array of {pixels.dtype} is not within 0 to {top}; "
            "give whole numbers from 0 to 255 or floats from 0 to 1"
        )
    return (pixels if top == 255 else np.rint(pixels.astype(np.float64) * 255)).astype(np.uint8)


def _rate(name: str, given: Any) -> int:
    if isinstance(given, bool) or not isinstance(given, int | np.integer) or given < 1:
        raise UsageError(f"{name}: its sampling_rate is {given!r}; give the number of samples a second")
    return int(given)


def _samples_of_array(name: str, value: Any) -> NDArray[np.float32]:
    """Samples of shape (frames, channels); a recording has more frames than channels."""
    try:
        samples = np.asarray(value)
    except (ValueError, TypeError):
        samples = np.empty(0, object)
    if samples.ndim not in (1, 2) or (samples.dtype.kind != "f" and samples.dtype.name not in _FULL_SCALE):
        raise UsageError(
            f"{name}: an array of {samples.dtype} and shape {samples.shape} is no recording; "
            "give floats from -1 to 1, or int16 or int32 samples"
        )
    samples = (samples / _FULL_SCALE.get(samples.dtype.name, 1)).astype(np.float32)
    if samples.ndim == 1:
        return samples[:, None]
    return samples.T if samples.shape[0] < samples.shape[1] else samples


def _decode(name: str, content: bytes) -> tuple[NDArray[np.float32], int]:
    try:
        return wav.decode(content) or _decode_with_soundfile(name, content)
    except ValueError as error:
        raise UsageError(f"{name}: cannot read this recording ({error}); replace or remove it") from error


def _decode_with_soundfile(name: str, content: bytes) -> tuple[NDArray[np.float32], int]:
    if not content:
        raise ValueError("the file is empty")
    try:
        soundfile = importlib.import_module("soundfile")
    except (ImportError, OSError) as error:
        # An OSError where the package is there and the library beneath it is not.
        raise UsageError(f"{name}: this is no plain WAV file; to read it, pip install soundfile") from error
    try:
        samples, rate = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    except Exception as error:  # its own error, and others for odd files
        raise ValueError(one_line(error)) from error
    return samples, int(rate)
