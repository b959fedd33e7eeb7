"""Decode one image or recording of a data set, in whatever form its row has it.

`datasets` decodes both by itself, but needs torchcodec for every recording, and its error for a damaged file does
not name the file. So the columns stay undecoded, and their values are decoded here, one at a time.
"""

from __future__ import annotations

import importlib
import io
import os
import re
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from capaft.support.errors import UsageError, one_line
from capaft.support.out_of_memory import pass_on_exhaustion
from capaft.support.printable import printable

_MOST_CHANNELS = 4
# How a library names a file that it was given in memory.
_OBJECT = re.compile(r"<_io\.BytesIO object at \w+>")
# Integer types of samples, with the value that stands for 1.
_FULL_SCALE = {"int16": 2**15, "int32": 2**31}
# A program that writes a WAV file to a pipe cannot go back to fill in the sizes.
_UNKNOWN_SIZE = 0xFFFFFFFF
_NOT_FOR_SCIPY = ("Unknown wave file format", "Unsupported bit depth")


def open_image(value: Any) -> Image.Image:
    """Open an image, turned upright, in its own mode (greys of 16 bits or floats become 8 bits).

    Args:
        value: an image, a path, the bytes of a file, a record of `path` and `bytes` as in an undecoded column, or
            an array: (height, width), channels first or last, integers from 0 to 255 or floats from 0 to 1.

    Raises:
        UsageError: there is no image, it cannot be read, or its greys have another range; the message names the file.
    """
    if isinstance(value, Image.Image):
        return _in_bytes("Pillow image", value)
    if isinstance(value, list | np.ndarray) or hasattr(value, "__array__"):
        return _image_of_array(value)
    name, content = _content(value, "image")
    try:
        with Image.open(io.BytesIO(content)) as image:
            upright = ImageOps.exif_transpose(image)
    except Exception as error:  # a damaged file surfaces as any of a dozen types
        pass_on_exhaustion(error)
        reason = "not an image that Pillow knows" if "cannot identify" in str(error) else one_line(error)
        raise UsageError(f"{name}: cannot read this image ({reason}); replace or remove it") from error
    return _in_bytes(name, upright)


def open_audio(value: Any) -> tuple[NDArray[np.float32], int]:
    """Open a recording: mono samples in [-1, 1], shape (samples,), and the sampling rate.

    scipy reads plain WAV files. FLAC, MP3, Ogg and the rest need the package `soundfile`.

    Args:
        value: a path, the bytes of a file, a record of `path` and `bytes` as in an undecoded column, or a record
            of `array` and `sampling_rate`.

    Raises:
        UsageError: there is no recording, it cannot be read, or it is damaged; the message names the file.
    """
    if isinstance(value, Mapping) and value.get("array") is not None:
        name = printable(str(value.get("path") or "recording in an array"))
        samples, rate = _samples_of_array(name, value["array"]), _rate(name, value.get("sampling_rate"))
    else:
        name, content = _content(value, "recording")
        samples, rate = _decode(name, content)
    if not (samples.size and np.isfinite(samples).all()):
        reason = "not all its samples are finite" if samples.size else "it has no samples"
        raise UsageError(f"{name}: cannot use this recording ({reason}); replace or remove it")
    return samples.mean(axis=1, dtype=np.float32), rate


def _content(value: Any, medium: str) -> tuple[str, bytes]:
    """Name of a file for error messages, and its content."""
    path, content = (value.get("path"), value.get("bytes")) if isinstance(value, Mapping) else (value, None)
    if isinstance(value, bytes | bytearray):
        path, content = None, value
    if content is not None:
        return printable(str(path or f"{medium} without a file name")), bytes(content)
    if not isinstance(path, str | os.PathLike) or not str(path):
        kind = "nothing" if value is None else type(value).__name__
        raise UsageError(f"a row holds {kind} where its {medium} should be; give the path of a file or drop the row")
    try:
        return printable(str(path)), Path(path).read_bytes()
    except (OSError, ValueError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else one_line(error)
        raise UsageError(
            f"{printable(str(path))}: cannot read this {medium} ({reason}); put it back or drop the row"
        ) from error


def _in_bytes(name: str, image: Image.Image) -> Image.Image:
    """Scale greys to 8 bits: Pillow would clip wider ones, and turn almost every pixel white or black."""
    if not image.mode.startswith(("I", "F")):
        return image
    pixels = np.asarray(image)
    # 32 bits are a container: the greys in them seldom have more than 8 or 16.
    is_deep = image.mode != "F" and (";16" in image.mode or 255 < pixels.max() < 2**16)
    if is_deep and pixels.min() >= 0:
        pixels = pixels >> 8
    try:
        return Image.fromarray(_bytes_of_pixels(pixels))
    except UsageError:
        raise UsageError(
            f"{name}: the greys of this image range from {pixels.min():g} to {pixels.max():g}; "
            "store whole numbers from 0 to 65535 or floats from 0 to 1, or remove it"
        ) from None


def _image_of_array(value: Any) -> Image.Image:
    try:
        pixels = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise UsageError(
            f"an image is not a usable array ({one_line(error)}); give (height, width) or (height, width, 3 or 4)"
        ) from error
    if pixels.ndim == 3 and pixels.shape[0] in (1, 3, 4) and pixels.shape[2] > _MOST_CHANNELS:
        pixels = np.moveaxis(pixels, 0, 2)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if not pixels.size or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))):
        raise UsageError(f"an image has shape {pixels.shape}; give (height, width) or (height, width, 3 or 4)")
    return Image.fromarray(np.ascontiguousarray(_bytes_of_pixels(pixels)))


def _bytes_of_pixels(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    top = 1 if pixels.dtype.kind in "fb" else 255
    # Negated, so that a NaN fails as well.
    if pixels.dtype.kind not in "fbiu" or not (pixels.min() >= 0 and pixels.max() <= top):
        raise UsageError(
            f"an image of {pixels.dtype} is not within 0 to {top}; "
            "give whole numbers from 0 to 255 or floats from 0 to 1"
        )
    return (pixels if top == 255 else np.rint(pixels.astype(np.float64) * 255)).astype(np.uint8)


def _rate(name: str, rate: Any) -> int:
    if isinstance(rate, bool) or not isinstance(rate, int | np.integer) or rate < 1:
        raise UsageError(f"{name}: its sampling_rate is {rate!r}; give the number of samples a second")
    return int(rate)


def _samples_of_array(name: str, value: Any) -> NDArray[np.float32]:
    """Samples of shape (frames, channels); a recording has more frames than channels."""
    try:
        samples = np.asarray(value)
    except (ValueError, TypeError):
        samples = np.empty(0, object)
    if samples.ndim not in (1, 2) or (samples.dtype.kind != "f" and samples.dtype.name not in _FULL_SCALE):
        raise UsageError(
            f"{name}: an array of {samples.dtype} and shape {samples.shape} is not a recording; "
            "give floats from -1 to 1, or int16 or int32 samples"
        )
    samples = _scaled(samples)
    if samples.ndim == 1:
        return samples[:, None]
    return samples.T if samples.shape[0] < samples.shape[1] else samples


def _scaled(samples: NDArray[Any]) -> NDArray[np.float32]:
    return (samples / _FULL_SCALE.get(samples.dtype.name, 1)).astype(np.float32)


def _decode(name: str, content: bytes) -> tuple[NDArray[np.float32], int]:
    """Samples of shape (frames, channels), and the sampling rate."""
    try:
        return _decode_wav(content) or _decode_with_soundfile(name, content)
    except ValueError as error:
        raise UsageError(f"{name}: cannot read this recording ({error}); replace or remove it") from error


class _FirstSamples(io.BytesIO):
    """Content of a WAV file for scipy, to the last whole frame of its first samples.

    Raises a ValueError where samples are missing; scipy only warns of that, and by the size of the whole file in the
    first header, which some writers get wrong. That size is set to unknown here. Some get the bytes a second or the
    bytes of a frame wrong, so these are worked out anew.
    """

    def __init__(self, content: bytes) -> None:
        super().__init__(content[:4] + _UNKNOWN_SIZE.to_bytes(4, "little") + content[8:])
        self._frame = 1

    def read(self, size: int | None = -1, /) -> bytes:
        chunk = self.getvalue()[: self.tell()][-8:-4]
        content = super().read(size)
        if chunk == b"fmt ":
            kind, channels, rate, _, _, bits = struct.unpack("<HHIIHH", content)
            if channels == 0 or rate == 0:
                raise ValueError(f"its header says {channels} channels and {rate} samples a second")
            if bits not in (8, 16, 24, 32, 64):
                raise ValueError("Unsupported bit depth")
            self._frame = channels * bits // 8
            return struct.pack("<HHIIHH", kind, channels, rate, rate * self._frame, self._frame, bits)
        if chunk == b"data":
            if size is not None and len(content) < size != _UNKNOWN_SIZE:
                raise ValueError(f"{size} bytes promised, {len(content)} left")
            # Nothing after the first samples is looked at.
            self.seek(0)
            self.truncate()
            return content[: len(content) // self._frame * self._frame]
        return content


def _decode_wav(content: bytes) -> tuple[NDArray[np.float32], int] | None:
    """Samples and sampling rate of a WAV file; None if it is another file, or a WAV file that scipy does not read.

    Raises:
        ValueError: the file is damaged or cut off.
    """
    if content[:4] != b"RIFF" or content[8:12] != b"WAVE":
        return None
    from scipy.io import wavfile

    try:
        with warnings.catch_warnings():
            # Warnings of chunks that it skips, and of the size that `_FirstSamples` sets.
            warnings.simplefilter("ignore", wavfile.WavFileWarning)
            rate, samples = wavfile.read(_FirstSamples(content))
    except Exception as error:  # a damaged file surfaces as any of a dozen types
        pass_on_exhaustion(error)
        if str(error).startswith(_NOT_FOR_SCIPY):
            return None
        raise ValueError(f"it is cut off or damaged: {one_line(error)}") from error
    if samples.dtype == np.uint8:
        samples = (samples.astype(np.float32) - np.float32(128)) / np.float32(128)
    elif samples.dtype.kind != "f" and samples.dtype.name not in _FULL_SCALE:
        return None
    return _scaled(samples[:, None] if samples.ndim == 1 else samples), int(rate)


def _decode_with_soundfile(name: str, content: bytes) -> tuple[NDArray[np.float32], int]:
    if not content:
        raise ValueError("the file is empty")
    try:
        soundfile = importlib.import_module("soundfile")
    except (ImportError, OSError) as error:
        # An OSError if the package is installed without the library beneath it.
        raise UsageError(f"{name}: not a plain WAV file; to read it, pip install soundfile") from error
    try:
        samples, rate = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    except Exception as error:  # its own error, and others for odd files
        pass_on_exhaustion(error)
        raise ValueError(_OBJECT.sub("it", one_line(error))) from error
    return samples, int(rate)
