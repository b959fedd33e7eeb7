"""The safetensors file around an adapter: its JSON and the places of its tensors, checked before one is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
from torch import Tensor

from capaft.adapter.file.canonical import is_text, parse_json
from capaft.adapter.file.encoding import DTYPE_BYTES
from capaft.support.errors import AdapterFileError, UsageError

# Room for 200,000 labels of 10 characters outside ASCII; a hostile one of this size still fits into memory, parsed.
MAX_JSON_BYTES = 16 * 2**20


def seal(tensors: dict[str, Tensor], text: str) -> bytes:
    """The bytes of a file with these tensors and this header.

    Raises:
        UsageError: the name of a tensor is no text, or the header is too long for a reader.
    """
    for name in tensors:
        if not is_text(name):
            raise UsageError(f"the parameter {name!r} has a half of a surrogate pair in its name; rename it")
    content = safetensors.torch.save(tensors, metadata={"capaft": text})
    if (length := int.from_bytes(content[:8], "little")) > MAX_JSON_BYTES:
        raise UsageError(f"the header takes {length:,} bytes, more than {MAX_JSON_BYTES:,}; shorten the labels")
    return content


def open_safetensors(path: Path, stream: BinaryIO, size: int) -> tuple[dict[str, Any], str]:
    """The safetensors header, its bounds checked: tensor descriptions by name, and the text of capaft's own header.

    The tensors are not read yet, since a stranger's file may have any size.

    Raises:
        AdapterFileError: the file is truncated or foreign, or its tensors do not lie where it says.
    """
    described, metadata, length = _read_header(path, stream, size)
    text = metadata.pop("capaft", None)
    if metadata or not isinstance(text, str):
        raise AdapterFileError(f"{path} is not a capaft adapter; of a PEFT adapter, give the directory")
    _check_places(path, described, size - 8 - length, DTYPE_BYTES)
    return described, text


def read_layout(path: Path, stream: BinaryIO, size: int, dtype_bytes: Mapping[str, int]) -> dict[str, Any]:
    """The descriptions of any safetensors file's tensors by name, once they are known to be sound.

    Args:
        path: the file, for messages.
        stream: the file, at its beginning.
        size: its bytes.
        dtype_bytes: the types that its tensors may have, each with the bytes of a value.

    Raises:
        AdapterFileError: it is truncated or no such file, or its tensors do not lie where it says.
    """
    described, _, length = _read_header(path, stream, size)
    _check_places(path, described, size - 8 - length, dtype_bytes)
    return described


def _read_header(path: Path, stream: BinaryIO, size: int) -> tuple[dict[str, Any], dict[str, Any], int]:
    """The descriptions of a file's tensors, its metadata, and the bytes that both take.

    Raises:
        AdapterFileError: it is truncated, or is no safetensors file.
    """
    length = int.from_bytes(stream.read(8), "little")
    if size < 8 or length > size - 8:
        raise AdapterFileError(f"{path} is truncated or is not an adapter file; copy it again")
    if length > MAX_JSON_BYTES:
        raise AdapterFileError(f"{path} has a header of {length:,} bytes, and at most {MAX_JSON_BYTES:,} are read")
    try:
        described = parse_json(stream.read(length).decode())
        metadata = described.pop("__metadata__", {})
        if not isinstance(metadata, dict):
            raise TypeError
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise AdapterFileError(f"{path} is damaged or is not an adapter file; copy it again") from None
    return described, metadata, length


def _check_places(path: Path, described: dict[str, Any], size: int, dtype_bytes: Mapping[str, int]) -> None:
    """Make sure that tensors lie one after the other and fill their part of the file.

    Raises:
        AdapterFileError: they do not.
    """
    end = 0
    try:
        for entry in sorted(described.values(), key=lambda entry: tuple(entry["data_offsets"])):
            start, stop = entry["data_offsets"]
            if set(entry) != {"dtype", "shape", "data_offsets"} or {type(start), type(stop)} != {int}:
                raise ValueError
            if start != end or stop - start != _count(entry["shape"], size) * dtype_bytes[entry["dtype"]]:
                raise ValueError
            end = stop
    except (ValueError, TypeError, KeyError, AttributeError):
        raise AdapterFileError(f"{path} is damaged: its tensors do not lie where its header says") from None
    if end != size:
        raise AdapterFileError(f"{path} is truncated or has bytes that its header does not name; copy it again")


def _count(shape: list[Any], most: int) -> int:
    """The number of a tensor's entries.

    Raises:
        ValueError: a side is no whole number, or there are more entries than can be.
    """
    count = 1
    for side in shape:
        if type(side) is not int or side < 0:
            raise ValueError
        count *= side
        if count > most:  # Before a long list of sides makes it a number of millions of digits.
            raise ValueError
    return count
