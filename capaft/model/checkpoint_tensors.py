"""The tensors of a safetensors checkpoint where they lie, read one by one, in whole or as they are."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import safe_open
from torch import Tensor

from capaft.model.load import locate_model
from capaft.model.origin import Origin
from capaft.model.stored_dtypes import NAMES, weight_files
from capaft.support.errors import UsageError

SAFETENSORS = ".safetensors"
# As the library that writes these files limits it.
_MAX_HEADER = 100_000_000
_PIECE = 2**23


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a checkpoint.

    Attributes:
        name: its name there.
        file: the file that holds it.
        code: its dtype, as safetensors calls it.
        shape: its shape.
        start: its first byte in the file.
        size: its bytes.
    """

    name: str
    file: Path
    code: str
    shape: torch.Size
    start: int
    size: int

    @property
    def dtype(self) -> torch.dtype | None:
        """The dtype of its values; None if they are codes, counters or truth values."""
        return NAMES.get(self.code)

    def pieces(self) -> Iterator[memoryview]:
        """Its bytes as they are, a few at a time, each valid until the next."""
        buffer = memoryview(bytearray(min(_PIECE, self.size)))
        with self.file.open("rb", buffering=0) as stream:
            stream.seek(self.start)
            for done in range(0, self.size, _PIECE):
                piece = buffer[: min(_PIECE, self.size - done)]
                _fill(stream, piece, self.file)
                yield piece

    def read(self) -> Tensor:
        """Its values, in memory of their own."""
        assert self.dtype is not None
        values = torch.empty(self.shape, dtype=self.dtype, device="cpu")
        if self.size:
            with self.file.open("rb", buffering=0) as stream:
                stream.seek(self.start)
                _fill(stream, values.view(-1).view(torch.uint8).numpy().data, self.file)
        return values

    def look(self) -> Tensor:
        """Its values where they lie: only what is used is read. Nothing must be written to them."""
        with safe_open(self.file, framework="pt") as tensors:
            return tensors.get_tensor(self.name)


def checkpoint_tensors(base: Origin) -> Mapping[str, StoredTensor] | None:
    """The tensors of a base model's checkpoint by name; None if it is not made of safetensors files.

    Raises:
        UsageError: a file is damaged.
    """
    source = locate_model(base.name)
    if Path(source).is_file():
        return None
    tensors: dict[str, StoredTensor] = {}
    for file in map(Path, weight_files(source, base.revision)):
        if file.suffix != SAFETENSORS:
            return None
        tensors |= {tensor.name: tensor for tensor in _in_file(file)}
    return tensors or None


def _in_file(file: Path) -> Iterator[StoredTensor]:
    """The tensors of one file, in the order in which they lie in it.

    Raises:
        UsageError: the file is damaged.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 0 < length <= min(size - 8, _MAX_HEADER):
            raise UsageError(f"{file} is cut or damaged; download it again")
        try:
            described = json.loads(stream.read(length))
            described.pop("__metadata__", None)
            entries = sorted(described.items(), key=lambda entry: tuple(entry[1]["data_offsets"]))
            for name, entry in entries:
                start, stop = entry["data_offsets"]
                if not 0 <= start <= stop <= size - 8 - length:
                    raise ValueError
                shape = torch.Size(entry["shape"])
                dtype = NAMES.get(entry["dtype"])
                if dtype is not None and shape.numel() * dtype.itemsize != stop - start:
                    raise ValueError
                yield StoredTensor(name, file, entry["dtype"], shape, 8 + length + start, stop - start)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise UsageError(f"{file} is cut or damaged; download it again") from None


def _fill(stream: BinaryIO, buffer: memoryview, file: Path) -> None:
    done = 0
    while done < len(buffer):
        count = stream.readinto(buffer[done:])  # type: ignore[attr-defined]
        if not count:
            raise UsageError(f"{file} was cut while it was read; download it again")
        done += count
