"""Read MNIST's idx files, one of images and one of their labels.

An image becomes the bytes of a PGM file, its pixels behind a header of a few bytes. So all images are one buffer, fast
to build, that Pillow and `datasets` read like any image. PNG would cost seconds, and a column of arrays would be read
as lists of Python numbers.
"""

from __future__ import annotations

import gzip
import math
import re
import struct
import zlib
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from capaft.data.splits import TRAIN, WantedSplits, split_role
from capaft.support.errors import UsageError, one_line

Bytes = NDArray[np.uint8]

_NAME = re.compile(r"(?P<prefix>.*?)(images[-.]idx3|(?P<labels>labels)[-.]idx1)[-.]ubyte(?P<gz>\.gz)?", re.IGNORECASE)
_GZIP = b"\x1f\x8b"
# Arrow counts the bytes of one chunk in 31 bits.
_LARGEST_CHUNK = 2**28


def is_idx(path: Path) -> bool:
    """True if this is a file named like MNIST's (some archives hold directories of these names)."""
    return _NAME.fullmatch(path.name) is not None and path.is_file()


def read_idx_directory(path: Path, choice: WantedSplits) -> dict[str, datasets.Dataset]:
    """Read the chosen splits of a directory: `t10k` is the test split, and a single pair of files is the train split.

    Raises:
        UsageError: a file is missing or damaged, or two could be the same split.
    """
    files = sorted(p for p in path.iterdir() if is_idx(p) and not p.name.startswith("."))
    images = {_prefix(file): file for file in reversed(files) if not _of_labels(file)}
    if not images:
        raise UsageError(
            f"{path}: there are idx files of labels but none of images; add those named ...images-idx3-ubyte"
        )
    splits = _splits(path, images, choice)
    pairs = {name: _read_pair(file) for name, file in splits.items()}
    classes = 1 + max(int(labels.max()) for _, labels in pairs.values())
    return {name: _dataset(pixels, labels, classes) for name, (pixels, labels) in pairs.items()}


def read_idx_file(path: Path) -> datasets.Dataset:
    """Read one file of images, and the file of labels beside it.

    Raises:
        UsageError: the file holds labels, the labels are missing, or one of the files is damaged.
    """
    if _of_labels(path):
        raise UsageError(f"{path}: these are labels; give the file of their images (named ...images-idx3-ubyte)")
    pixels, labels = _read_pair(path)
    return _dataset(pixels, labels, 1 + int(labels.max()))


def _parts(path: Path) -> re.Match[str]:
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return match


def _prefix(path: Path) -> str:
    return _parts(path)["prefix"]


def _of_labels(path: Path) -> bool:
    return _parts(path)["labels"] is not None


def _splits(path: Path, images: dict[str, Path], choice: WantedSplits) -> dict[str, Path]:
    """Files of images of the chosen splits."""
    splits: dict[str, Path] = {}
    if len(images) == 1:
        splits, images = {TRAIN: next(iter(images.values()))}, {}
    for prefix, file in images.items():
        words = re.split(r"[^a-z0-9]+", prefix.lower().replace("t10k", "test"))
        name = next(filter(None, map(split_role, words)), None)
        if name is None or name in splits:
            names = ", ".join(sorted(p.name for p in images.values()))
            raise UsageError(f"{path}: cannot tell train from test among {names}; give the path of one of them")
        splits[name] = file
    chosen = choice.among(splits)
    return {name: file for name, file in splits.items() if name in chosen}


def _read_pair(images: Path) -> tuple[Bytes, Bytes]:
    neighbours = [p for p in sorted(images.parent.iterdir()) if is_idx(p) and _of_labels(p)]
    matching = [p for p in neighbours if _prefix(p) == _prefix(images)]
    if not matching:
        raise UsageError(f"{images}: its labels are missing; put {_prefix(images)}labels-idx1-ubyte[.gz] beside it")
    pixels, labels = _read(images, 3), _read(matching[0], 1)
    if len(pixels) != len(labels):
        raise UsageError(
            f"{images}: {len(pixels)} images, but {matching[0].name} has {len(labels)} labels; download both again"
        )
    if not 0 < pixels[0].size <= _LARGEST_CHUNK:
        raise UsageError(f"{images}: its images are {' x '.join(map(str, pixels.shape[1:]))} pixels; download it again")
    return pixels, labels


def _read(path: Path, dimensions: int) -> Bytes:
    content = _content(path)
    magic = bytes((0, 0, 8, dimensions))
    start = 4 + 4 * dimensions
    if content[:4] != magic[: len(content)] or not content:
        kind = {1: "labels", 3: "images"}[dimensions]
        raise UsageError(
            f"{path}: not an idx file of {kind}: it begins with {content[:4].hex(' ') or 'nothing'}, "
            f"not with {magic.hex(' ')}; download it again"
        )
    if len(content) < start:
        raise UsageError(f"{path}: the file is cut off in its header; download it again")
    shape = struct.unpack_from(f">{dimensions}I", content, 4)
    if len(content) - start != math.prod(shape):
        raise UsageError(
            f"{path}: its header says {' x '.join(map(str, shape))} bytes, {len(content) - start} follow; "
            "download it again"
        )
    if shape[0] == 0:
        raise UsageError(f"{path}: there are no rows in this file")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _content(path: Path) -> bytes:
    content = path.read_bytes()
    # By content: a download may have been unpacked on the way and kept its name.
    if not content.startswith(_GZIP):
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{path}: damaged gzip file ({one_line(error)}); download it again") from error


def _dataset(pixels: Bytes, labels: Bytes, classes: int) -> datasets.Dataset:
    features = datasets.Features(
        image=datasets.Image(decode=False), label=datasets.ClassLabel(names=[str(label) for label in range(classes)])
    )
    table = pa.table({"image": _portable_grey_maps(pixels), "label": pa.array(labels, pa.int64())})
    return datasets.Dataset(table, datasets.DatasetInfo(features=features))


def _portable_grey_maps(pixels: Bytes) -> pa.ChunkedArray:
    _, height, width = pixels.shape
    header = np.frombuffer(f"P5 {width} {height} 255\n".encode("ascii"), np.uint8)
    size = len(header) + height * width
    step = max(1, _LARGEST_CHUNK // size)
    chunks = []
    for block in (pixels[start : start + step] for start in range(0, len(pixels), step)):
        files = np.empty((len(block), size), np.uint8)
        files[:, : len(header)] = header
        files[:, len(header) :] = block.reshape(len(block), -1)
        ends = np.arange(len(block) + 1, dtype=np.int32) * np.int32(size)
        content = pa.Array.from_buffers(pa.binary(), len(block), [None, pa.py_buffer(ends), pa.py_buffer(files)])
        no_paths = pa.nulls(len(block), pa.string())
        chunks.append(pa.StructArray.from_arrays([content, no_paths], ["bytes", "path"]))
    return pa.chunked_array(chunks)
