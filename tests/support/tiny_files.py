"""Adapter files of tiny models: made by capaft, and taken apart and put together by hand."""

from __future__ import annotations

import contextlib
import copy
import json
import resource
import struct
import time
from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import bert, scramble
from torch import Tensor, nn

import capaft
from capaft.adapter.file.header import TaskRecord
from capaft.adapter.file.save_load import load
from capaft.support.errors import AdapterFileError, UsageError

HEAD = ("classifier.weight", "classifier.bias")
OPTIONS = {"problem": "single", "stride": 128, "threshold": 0.5, "packing": True, "prefix": None}
TASK = TaskRecord("text-classification", ("bad", "so so", "très bon 😀"), 128, "accuracy", OPTIONS)


def adapted(method: str = "nola", model: nn.Module | None = None, **options: Any) -> Any:
    """A model with an adapter and a head, both with values as training might leave them."""
    model = bert() if model is None else model
    adapter = capaft.attach(model, method, **({"rank": 3, "k": 9, "head": HEAD} | options))
    scramble(adapter)
    with torch.no_grad():
        for name in adapter.plan.trained:
            model.get_parameter(full_name(model, name)).add_(0.01)
    return model


def full_name(model: nn.Module, canonical: str) -> str:
    names = dict(model.named_parameters())
    return canonical if canonical in names else f"bert.{canonical}"


def trained_values(model: nn.Module) -> dict[str, Tensor]:
    (adapter,) = capaft.adapters(model).values()
    return {key: parameter.detach().clone() for key, parameter in adapter.trained(model).items()}


def equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return list(ours) == list(theirs) and all(torch.equal(ours[key], theirs[key]) for key in ours)


def one_layer() -> nn.ModuleDict:
    """A base model of one layer, with weights that do not depend on a generator."""
    layer = nn.Linear(6, 4, bias=False)
    with torch.no_grad():
        layer.weight.copy_((torch.arange(24) / 16 - 0.7).view(4, 6))
    return nn.ModuleDict({"query": layer})


Parts = tuple[dict[str, Any], dict[str, tuple[str, list[int], bytes]]]
Change = Callable[[dict[str, Any], dict[str, tuple[str, list[int], bytes]]], Any]


def canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def digest(data: bytes) -> str:
    return blake2b(data, digest_size=16).hexdigest()


def unpack(data: bytes) -> Parts:
    """Header and tensors of a file."""
    (length,) = struct.unpack("<Q", data[:8])
    listed = json.loads(data[8 : 8 + length])
    header = json.loads(listed.pop("__metadata__")["capaft"])
    body = data[8 + length :]
    return header, {
        name: (entry["dtype"], entry["shape"], body[slice(*entry["data_offsets"])]) for name, entry in listed.items()
    }


def pack(header: dict[str, Any], tensors: dict[str, tuple[str, list[int], bytes]]) -> bytes:
    """A file whose own digests hold, whatever it says."""
    hashed = b"".join(map(hashable, sorted(tensors.items())))
    if isinstance(header.get("digest"), dict):
        header["digest"].pop("header", None)
        header["digest"]["tensors"] = digest(hashed)
        header["digest"]["header"] = digest(canonical(header).encode())
    return enveloped(header, tensors)


def enveloped(header: dict[str, Any], tensors: dict[str, tuple[str, list[int], bytes]]) -> bytes:
    listed: dict[str, Any] = {"__metadata__": {"capaft": canonical(header)}}
    body = b""
    for name, (dtype, shape, raw) in tensors.items():
        listed[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + len(raw)]}
        body += raw
    return envelope(listed, body)


def hashable(tensor: tuple[str, tuple[str, list[int], bytes]]) -> bytes:
    """What the digest of the tensors takes of one: its name, dtype, shape and bytes, with their lengths."""
    name, (dtype, shape, raw) = tensor
    texts = b"".join(struct.pack("<Q", len(text.encode())) + text.encode() for text in (name, dtype))
    return texts + struct.pack(f"<{len(shape) + 2}Q", len(shape), *shape, len(raw)) + raw


def envelope(listed: Any, body: bytes = b"") -> bytes:
    text = listed if isinstance(listed, bytes) else json.dumps(listed).encode()
    return struct.pack("<Q", len(text)) + text + body


def forged(data: bytes, change: Change) -> bytes:
    header, tensors = unpack(data)
    change(header, tensors)
    return pack(header, tensors)


@contextlib.contextmanager
def bounded(seconds: float = 5, room: int = 2**29) -> Iterator[None]:
    """Fail if the body takes too long, or too much memory."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    statm = Path("/proc/self/statm")
    if statm.exists():
        used = int(statm.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + room, before[1]))
    start = time.perf_counter()
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert time.perf_counter() - start < seconds


def refused(path: Path, data: bytes, says: str = ".", kind: type[UsageError] = AdapterFileError) -> None:
    """The file is refused in one line, soon, without much memory, and the model stays as it was."""
    path.write_bytes(data)
    model = bert()
    before = copy.deepcopy(model.state_dict())
    with bounded(), pytest.raises(kind, match=says) as error:
        load(model, path)
    assert isinstance(error.value, kind)
    assert "\n" not in str(error.value)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 700
    assert capaft.adapters(model) == {}
    assert equal(dict(model.state_dict()), dict(before))
    assert all(parameter.requires_grad for parameter in model.parameters())


def put(*where: str, value: Any) -> Change:
    def change(header: dict[str, Any], _: Any) -> None:
        for key in where[:-1]:
            header = header[key]
        header[where[-1]] = value

    return change


def tensor(name: str, dtype: str, shape: list[int], raw: bytes) -> Change:
    return lambda _, tensors: tensors.update({name: (dtype, shape, raw)})
