"""MNIST's files, small ones made here, whole and damaged."""

from __future__ import annotations

import gzip
import io
import math
import struct
from pathlib import Path

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_data import load, load_evaluation

from capaft.data import idx
from capaft.data.media.decode import open_image
from capaft.support.errors import UsageError

IMAGES, LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"


def encode(values: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> bytes:
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()


def pixels(count: int, height: int = 2, width: int = 3) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return (np.arange(math.prod((count, height, width))) % 256).astype(np.uint8).reshape(count, height, width)


def write(directory: Path, prefix: str, labels: list[int], suffix: str = "", images: str = IMAGES) -> Path:
    directory.mkdir(exist_ok=True)
    path = directory / f"{prefix}{images}{suffix}"
    of_labels = path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))
    pack = gzip.compress if suffix else bytes
    path.write_bytes(pack(encode(pixels(len(labels)))))
    of_labels.write_bytes(pack(encode(np.array(labels, np.uint8))))
    return path


def fails(source: Path, *parts: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(str(source))
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("images", [IMAGES, "images.idx3-ubyte"])
def test_train_and_test(tmp_path: Path, suffix: str, images: str) -> None:
    write(tmp_path, "train-", [3, 0, 1, 0], suffix, images)
    write(tmp_path, "t10k-", [1, 4], suffix, images)
    splits = load(str(tmp_path))
    features = {"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=list("01234"))}
    for name, labels in {"train": [3, 0, 1, 0], "validation": [1, 4]}.items():
        assert splits[name].features == features
        assert splits[name]["label"][:] == labels
        for row, expected in zip(splits[name], pixels(len(labels)), strict=True):
            image = open_image(row["image"])
            assert image.mode == "L"
            assert np.array_equal(np.asarray(image), expected)
    assert len(load(f"{tmp_path}[:3]")["train"]) == 3


def test_one_pair_is_cut(tmp_path: Path) -> None:
    path = write(tmp_path, "t10k-", [0, 1] * 10, ".gz")
    for source in (tmp_path, path):
        splits = load(str(source))
        assert (len(splits["train"]), len(splits["validation"])) == (18, 2)
        assert len(load_evaluation(str(source))) == 20


def test_one_file_of_several(tmp_path: Path) -> None:
    path = write(tmp_path, "train-", [0, 1] * 10)
    write(tmp_path, "t10k-", [9])
    splits = load(str(path))
    assert (len(splits["train"]), len(splits["validation"])) == (18, 2)
    assert splits["train"].features["label"].names == ["0", "1"]


def test_directories_named_like_the_files(tmp_path: Path) -> None:
    write(tmp_path, "train-", [0, 1] * 10, images="images.idx3-ubyte")
    write(tmp_path / f"train-{IMAGES}", "train-", [0, 1])
    assert len(load(str(tmp_path))["train"]) == 18


def test_packed_and_unpacked_beside_each_other(tmp_path: Path) -> None:
    path = write(tmp_path, "train-", [0, 1] * 10)
    path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    # A file unpacked on its way and not renamed.
    (tmp_path / f"train-{LABELS}").rename(tmp_path / f"train-{LABELS}.gz")
    assert len(load(str(tmp_path))["train"]) == 18


def test_rows_are_images_to_datasets_too(tmp_path: Path) -> None:
    rows = load_evaluation(str(write(tmp_path, "", [0, 1])))
    image = rows.cast_column("image", datasets.Image())[1]["image"]
    assert np.array_equal(np.asarray(image), pixels(2)[1])


@given(count=st.integers(1, 20), height=st.integers(1, 5), width=st.integers(1, 5), chunk=st.integers(1, 200))
def test_chunks(count: int, height: int, width: int, chunk: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(idx, "_LARGEST_CHUNK", chunk)
        column = idx._portable_grey_maps(pixels(count, height, width))
    decoded = [np.asarray(Image.open(io.BytesIO(value["bytes"]))) for value in column.to_pylist()]
    assert np.array_equal(decoded, pixels(count, height, width))


@pytest.mark.parametrize(
    ("what", "content", "message"),
    [
        (IMAGES, b"", "not an idx file of images: it begins with nothing, not with 00 00 08 03"),
        (IMAGES, b"\0\0\x08\x01\0\0\0\0", "it begins with 00 00 08 01, not with 00 00 08 03"),
        (LABELS, b"<html>", "not an idx file of labels: it begins with 3c 68 74 6d, not with 00 00 08 01"),
        (LABELS, b"\0\0\x0d\x01\0\0\0\0", "it begins with 00 00 0d 01"),
        (IMAGES, b"\0\0\x08\x03\0\0", "cut off in its header"),
        (IMAGES, b"\0\0", "cut off in its header"),
        (IMAGES, encode(pixels(2))[:-1], "its header says 2 x 2 x 3 bytes, 11 follow; download it again"),
        (IMAGES, encode(pixels(2)) + b"\0", "its header says 2 x 2 x 3 bytes, 13 follow"),
        (IMAGES, b"\0\0\x08\x03" + b"\xff" * 12, "4294967295 x 4294967295 x 4294967295 bytes, 0 follow"),
        (IMAGES, encode(pixels(3)), "3 images, but train-labels-idx1-ubyte has 2 labels"),
        (IMAGES, encode(pixels(0)), "there are no rows in this file"),
        (IMAGES, encode(pixels(2, 0, 3)), "its images are 0 x 3 pixels; download it again"),
        (IMAGES, gzip.compress(encode(pixels(2)), mtime=0)[:-10], "damaged gzip file"),
        (IMAGES, b"\x1f\x8b and nothing", "damaged gzip file"),
        (LABELS, gzip.compress(b"x" * 99, mtime=0)[:-12] + b"\0" * 12, "damaged gzip file"),
    ],
)
def test_damaged(tmp_path: Path, what: str, content: bytes, message: str) -> None:
    path = write(tmp_path, "train-", [0, 1])
    (tmp_path / f"train-{what}").write_bytes(content)
    for source in (tmp_path, path):
        fails(source, f"train-{what}: " if "but" not in message else path.name, message)


def test_files_that_are_missing(tmp_path: Path) -> None:
    path = write(tmp_path, "train-", [0, 1])
    labels = tmp_path / f"train-{LABELS}"
    fails(labels, f"{LABELS}: these are labels; give the file of their images")
    labels.rename(tmp_path / f"t10k-{LABELS}")
    for source in (tmp_path, path):
        fails(source, f"{IMAGES}: its labels are missing; put train-{LABELS}[.gz] beside it")
    path.unlink()
    fails(tmp_path, "there are idx files of labels but none of images")


def test_pairs_that_cannot_be_told_apart(tmp_path: Path) -> None:
    for prefix in ("emnist-letters-train-", "emnist-digits-train-", "emnist-digits-test-"):
        path = write(tmp_path, prefix, [0, 1] * 5)
    fails(tmp_path, "cannot tell train from test among emnist-digits-test-images-idx3-ubyte, ", "give the path of one")
    assert len(load(str(path))["train"]) == 9
    for file in tmp_path.glob("emnist-letters*"):
        file.unlink()
    assert len(load(str(tmp_path))["train"]) == 10
