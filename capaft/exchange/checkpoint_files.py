"""Safetensors files, written tensor by tensor, and the index of several."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from capaft.support.errors import UsageError
from capaft.support.files import flush_directory, write_atomically

if TYPE_CHECKING:
    from capaft.exchange.merged_tensor import MergedTensor

WEIGHTS = "model.safetensors"
# Bytes given to the system at once. Linux takes up to seven times as long for larger pieces, whose pages it joins.
_AT_ONCE = 2**17
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def parse_size(text: str) -> int:
    """The bytes of a size such as 5GB, 500MB or 2GiB, as transformers reads them.

    Raises:
        UsageError: it is none.
    """
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)\s*(|[KMGT]I?)B?", text.strip().upper())
    size = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    if size < 1:
        raise UsageError(f"--max-shard-size must be a size such as 5GB or 500MB, got {text}")
    return size


def into_files(tensors: Iterable[MergedTensor], limit: int | None) -> list[list[MergedTensor]]:
    """Tensors by the file that they go to.

    Args:
        tensors: the tensors, in the order of the model.
        limit: bytes of a file's tensors, unless one alone has more; None for the files of the base's checkpoint.
    """
    if limit is None:
        homes: dict[Path | None, list[MergedTensor]] = {}
        for tensor in tensors:
            homes.setdefault(tensor.home, []).append(tensor)
        new = homes.pop(None, [])
        files = [homes[home] for home in sorted(homes, key=str)] or [[]]
        files[-1] += new
        return files
    files, size = [[]], 0
    for tensor in tensors:
        if files[-1] and size + tensor.size > limit:
            files.append([])
            size = 0
        files[-1].append(tensor)
        size += tensor.size
    return files


def write_checkpoint(directory: Path, files: Sequence[Sequence[MergedTensor]]) -> None:
    """Write the weights of a model, on disk when this returns.

    Args:
        directory: the directory, which exists.
        files: the tensors of each file.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    count = len(files)
    names = [WEIGHTS] if count == 1 else [f"model-{n + 1:05d}-of-{count:05d}.safetensors" for n in range(count)]
    # One file is flushed while the next is written.
    with ThreadPoolExecutor(1) as flusher:
        flushed = []
        for name, tensors in zip(names, files, strict=True):
            _write(directory / name, tensors)
            flushed.append(flusher.submit(_flush, directory / name))
        for done in flushed:
            done.result()
    if count > 1:
        total = sum(tensor.size for tensors in files for tensor in tensors)
        parameters = sum(tensor.shape.numel() for tensors in files for tensor in tensors)
        places = {tensor.name: name for name, tensors in zip(names, files, strict=True) for tensor in tensors}
        index = {"metadata": {"total_parameters": parameters, "total_size": total}, "weight_map": places}
        write_atomically(directory / f"{WEIGHTS}.index.json", json.dumps(index, indent=2, sort_keys=True) + "\n")
    flush_directory(directory)


def _write(path: Path, tensors: Sequence[MergedTensor]) -> None:
    """Write one file. Wide dtypes come first, so that every tensor lies at a multiple of its width."""
    ordered = sorted(tensors, key=lambda tensor: (-tensor.size // max(1, tensor.shape.numel()), tensor.name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in ordered:
        header[tensor.name] = {
            "dtype": tensor.code,
            "shape": list(tensor.shape),
            "data_offsets": [end, end + tensor.size],
        }
        end += tensor.size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb", buffering=0) as stream:
        _put(stream.fileno(), len(text).to_bytes(8, "little") + text)
        for tensor in ordered:
            for piece in tensor.bytes():
                _put(stream.fileno(), piece)


def _put(handle: int, data: bytes | memoryview) -> None:
    view = memoryview(data).cast("B")
    while len(view):
        view = view[os.write(handle, view[:_AT_ONCE]) :]


def _flush(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
