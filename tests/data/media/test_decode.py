"""One image or recording in every form that a row may hold, and every way in which it can be wrong."""

from __future__ import annotations

import importlib
import io
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from capaft.data.media.decode import open_audio, open_image
from capaft.support.errors import UsageError

PIXELS = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)


def fails(opener: Any, value: Any, *parts: str) -> None:
    with pytest.raises(UsageError) as caught:
        opener(value)
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def png(pixels: np.ndarray[Any, Any], kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "cat.png"
    path.write_bytes(png(PIXELS))
    return path


# Images


def test_image_in_every_form(file: Path) -> None:
    content = file.read_bytes()
    forms: list[Any] = [
        Image.open(file),
        file,
        str(file),
        content,
        bytearray(content),
        {"path": str(file), "bytes": None},
        {"path": None, "bytes": content},
        {"path": "gone.png", "bytes": content},
        {"bytes": content},
        PIXELS,
        PIXELS.tolist(),
        PIXELS / 255,
        PIXELS.transpose(2, 0, 1).repeat(4, axis=2),
        torch.from_numpy(PIXELS),
    ]
    for form in forms:
        image = open_image(form)
        assert isinstance(image, Image.Image)
        assert image.mode == "RGB"
        expected = PIXELS if image.size == (3, 2) else PIXELS.repeat(4, axis=1)
        assert np.array_equal(np.asarray(image), expected)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "WEBP", "TIFF"])
def test_kinds_of_images(kind: str) -> None:
    grey = np.array([[0, 255], [255, 0]], np.uint8)
    image = open_image({"bytes": png(grey, kind, lossless=True), "path": None})
    assert np.array_equal(np.asarray(image.convert("L")), grey)


def test_jpeg_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    wide = np.zeros((8, 16, 3), np.uint8)
    assert open_image(png(wide, "JPEG", exif=exif)).size == (8, 16)


def test_greys() -> None:
    for pixels in (PIXELS[..., 0], PIXELS[..., :1], PIXELS[..., 0] > 3):
        image = open_image(pixels)
        assert image.mode == "L"


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (np.array([[0, 255, 256, 65535]], np.uint16), [[0, 0, 1, 255]]),
        (np.array([[0, 255, 256, 65535]], ">u2"), [[0, 0, 1, 255]]),
        (np.array([[0, 255, 256, 65535]], np.int32), [[0, 0, 1, 255]]),
        (np.array([[0, 7, 255]], np.int32), [[0, 7, 255]]),
        (np.array([[0, 0.2, 1]], np.float32), [[0, 51, 255]]),
    ],
)
def test_greys_of_more_than_eight_bits(pixels: np.ndarray[Any, Any], expected: list[list[int]]) -> None:
    image = Image.fromarray(pixels)
    for value in (image, png(pixels, "TIFF")):
        opened = open_image(value)
        assert opened.mode == "L"
        assert np.asarray(opened).tolist() == expected


@pytest.mark.parametrize(
    ("pixels", "span"),
    [
        (np.array([[0, 65536]], np.int32), "from 0 to 65536"),
        (np.array([[-1, 300]], np.int32), "from -1 to 300"),
        (np.array([[0, 255]], np.float32), "from 0 to 255"),
        (np.array([[-0.5, 1]], np.float32), "from -0.5 to 1"),
        (np.array([[0, np.nan]], np.float32), "from nan to nan"),
    ],
)
def test_greys_of_no_known_range(tmp_path: Path, pixels: np.ndarray[Any, Any], span: str) -> None:
    path = tmp_path / "grey.tif"
    path.write_bytes(png(pixels, "TIFF"))
    fails(open_image, path, f"{path}: the greys of this image range {span}; store whole numbers")
    fails(open_image, Image.fromarray(pixels), f"Pillow image: the greys of this image range {span};")


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros(5), "shape (5,)"),
        (np.zeros((0, 5)), "shape (0, 5)"),
        (np.zeros((5, 5, 2)), "shape (5, 5, 2)"),
        ([], "shape (0,)"),
        ([[1, 2], [3]], "an image is not a usable array ("),
        ([["a"]], "not within 0 to"),
        (np.full((2, 2), 256), "not within 0 to 255"),
        (np.full((2, 2), -1), "not within 0 to 255"),
        (np.full((2, 2), 1.5), "not within 0 to 1; give whole numbers"),
        (np.full((2, 2), np.nan), "not within 0 to 1"),
    ],
)
def test_arrays_that_are_no_images(pixels: Any, message: str) -> None:
    fails(open_image, pixels, message)


def test_damaged_images(tmp_path: Path, file: Path) -> None:
    whole = png(np.random.default_rng(0).integers(0, 255, (50, 50, 3), dtype=np.uint8))
    for content, message in [
        (b"", "not an image that Pillow knows"),
        (b"no image", "not an image that Pillow knows"),
        (whole[:-500], "cannot read this image"),
        (whole[:20], "cannot read this image"),
        (whole[:200] + b"\0" * 100 + whole[300:], "cannot read this image"),
    ]:
        file.write_bytes(content)
        for value in (file, {"path": str(file), "bytes": None}, {"path": str(file), "bytes": content}):
            fails(open_image, value, f"{file}: cannot read this image", message, "replace or remove it")
    fails(open_image, {"path": None, "bytes": b"x"}, "image without a file name: cannot read")


def test_images_that_are_not_there(tmp_path: Path) -> None:
    fails(open_image, tmp_path / "gone.png", "gone.png: cannot read this image (no such file); put it back")
    fails(open_image, tmp_path, "cannot read this image (")
    fails(open_image, "a\0b", "cannot read this image (")
    for value, kind in ((None, "nothing"), ({"path": None, "bytes": None}, "dict"), (3, "int"), ("", "str")):
        fails(open_image, value, f"a row holds {kind} where its image should be")


def test_a_bomb(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1)
    fails(open_image, file, "cat.png: cannot read this image", "exceeds limit")


# Recordings


def wav(*samples: int, channels: int = 1) -> bytes:
    body = struct.pack(f"<{len(samples)}h", *samples)
    head = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, channels, 8000, 16000, 2 * channels, 16)
    chunks = b"WAVE" + head + b"data" + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", len(chunks)) + chunks


def test_recording_in_every_form(tmp_path: Path) -> None:
    path = tmp_path / "bark.wav"
    path.write_bytes(wav(0, 2**14, -(2**15)))
    content = path.read_bytes()
    forms: list[Any] = [
        path,
        str(path),
        content,
        {"path": str(path), "bytes": None},
        {"path": None, "bytes": content},
        {"array": [0.0, 0.5, -1.0], "sampling_rate": 8000},
        {"array": np.array([0, 2**14, -(2**15)], np.int16), "sampling_rate": np.int64(8000)},
        {"array": np.array([[0, 0.5, -1]] * 2), "sampling_rate": 8000, "path": None},
        {"array": torch.tensor([[0, 0.5, -1]] * 2).T, "sampling_rate": 8000},
    ]
    for form in forms:
        samples, rate = open_audio(form)
        assert (samples.dtype, samples.shape, rate) == (np.float32, (3,), 8000)
        assert samples.tolist() == [0, 0.5, -1]


def test_channels_are_averaged() -> None:
    samples, _ = open_audio(wav(0, 2**14, 2**14, 2**14, channels=2))
    assert samples.tolist() == [0.25, 0.5]


def test_damaged_recordings(tmp_path: Path) -> None:
    path = tmp_path / "bark.wav"
    for content, message in [
        (b"", "the file is empty"),
        (wav(1, 2, 3)[:-1], "cannot read this recording (it is cut off"),
        (wav(), "cannot use this recording (it has no samples)"),
    ]:
        path.write_bytes(content)
        fails(open_audio, path, "bark.wav: ", message, "replace or remove it")
    fails(open_audio, tmp_path / "gone.wav", "gone.wav: cannot read this recording (no such file)")
    fails(open_audio, None, "a row holds nothing where its recording should be")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"array": [0.0, np.nan], "sampling_rate": 1}, "not all its samples are finite"),
        ({"array": [], "sampling_rate": 1}, "no samples"),
        ({"array": [1, 2], "sampling_rate": 1}, "give floats from -1 to 1, or int16"),
        ({"array": ["a"], "sampling_rate": 1}, "is not a recording"),
        ({"array": [[1.0], [1.0, 2.0]], "sampling_rate": 1}, "is not a recording"),
        ({"array": 0.5, "sampling_rate": 1}, "shape () is not a recording"),
        ({"array": [0.5]}, "sampling_rate is None"),
        ({"array": [0.5], "sampling_rate": 0}, "sampling_rate is 0"),
    ],
)
def test_arrays_that_are_no_recordings(record: dict[str, Any], message: str) -> None:
    fails(open_audio, record, message)


def pretend(monkeypatch: pytest.MonkeyPatch, module: Any) -> None:
    """Let `import soundfile` return this module, or raise this error."""

    def import_module(name: str) -> Any:
        assert name == "soundfile"
        if isinstance(module, Exception):
            raise module
        return module

    monkeypatch.setattr(importlib, "import_module", import_module)


@pytest.mark.parametrize("error", [ModuleNotFoundError("No module"), OSError("sndfile library not found")])
def test_without_soundfile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception) -> None:
    pretend(monkeypatch, error)
    path = tmp_path / "bark.flac"
    path.write_bytes(b"fLaC")
    fails(open_audio, path, "bark.flac: not a plain WAV file; to read it, pip install soundfile")


def test_with_soundfile(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(stream: io.BytesIO, dtype: str, always_2d: bool) -> tuple[Any, int]:
        if stream.read() != b"fLaC":
            raise RuntimeError("Format not\nrecognised.")
        return np.array([[0, 0.5], [1, 1]], dtype), 16000

    pretend(monkeypatch, SimpleNamespace(read=read))
    samples, rate = open_audio({"path": "bark.flac", "bytes": b"fLaC"})
    assert (samples.tolist(), rate) == ([0.25, 1], 16000)
    fails(open_audio, {"path": "x.mp3", "bytes": b"x"}, "x.mp3: cannot read this recording (Format not recognised.)")


def test_the_real_soundfile() -> None:
    soundfile = pytest.importorskip("soundfile")
    for kind in ("FLAC", "OGG", "MP3"):
        stream = io.BytesIO()
        soundfile.write(stream, np.sin(np.arange(8000) / 10) / 2, 16000, format=kind)
        samples, rate = open_audio(stream.getvalue())
        assert (rate, samples.dtype) == (16000, np.float32)
        assert abs(np.abs(samples).max() - 0.5) < 0.1
