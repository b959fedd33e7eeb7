"""No file with a head of which little is stored does harm or loads wrongly, though all its digests hold."""

from __future__ import annotations

import base64
import struct
from pathlib import Path
from typing import Any

import pytest
from tiny_files import TASK, Change, adapted, forged, put, refused, tensor

from capaft.adapter.file.adapter_file import read
from capaft.adapter.file.save_load import save
from capaft.model.origin import Origin
from capaft.support.errors import AdapterFileError


@pytest.fixture(scope="module", params=["nola", "frozen"])
def good_head(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The same with a head of which little is stored."""
    path = tmp_path_factory.mktemp("good") / "adapter.safetensors"
    save(adapted(head_mode=request.param, head_k=20), path, base=Origin("tiny"), task=TASK)
    return path.read_bytes()


def _head(**values: Any) -> Change:
    return lambda header, _: header["head"].update(values)


LARGE = {"classifier.weight": [3, 32]}
HOSTILE_HEADS: dict[str, Change] = {
    "one key more": _head(mode="nola"),
    "one key less": lambda header, _: header["head"].pop("k"),
    "k negative": _head(k=-1),
    "k fractional": _head(k=20.0),
    "k true": _head(k=True),
    "k of a trillion": _head(k=10**12),
    "k of one too many": _head(k=21),
    "k of all the entries": _head(k=96),
    "no parameters": _head(parameters={}),
    "parameters of another type": _head(parameters=["classifier.weight"]),
    "a parameter that the model lacks": _head(parameters={"score.weight": [3, 32]}),
    "a parameter of several lines": _head(parameters={"a\nb\x1b[2J": [3, 32]}),
    "a parameter of a megabyte": _head(parameters={"a" * 2**20: [3, 32]}),
    "another shape": _head(parameters={"classifier.weight": [32, 3]}),
    "a huge shape": _head(parameters={"classifier.weight": [2**62, 2**62]}),
    "a shape of one side": _head(parameters={"classifier.weight": [96]}),
    "a shape of another type": _head(parameters={"classifier.weight": [3, 32.0]}),
    "a shape that is text": _head(parameters={"classifier.weight": "ab"}),
    "a small parameter": _head(parameters={"classifier.bias": [3, 1]}),
    "one parameter more": _head(parameters=LARGE | {"pooler.dense.weight": [32, 32]}, k=20),
    "a parameter that is adapted": _head(
        parameters=LARGE | {"encoder.layer.0.attention.self.query.weight": [32, 32]}, k=20
    ),
    "a parameter stored whole": tensor("head:classifier.weight", "F32", [3, 32], bytes(384)),
    "samples that are no base64": _head(weights="?"),
    "samples of another type": _head(weights=1),
    "samples of another start": _head(weights=base64.b64encode(bytes(128)).decode()),
    "no samples": _head(weights=""),
    "coefficients of another shape": tensor("head", "F32", [20], bytes(80)),
    "coefficients of a million": tensor("head", "F32", [1, 10**6], bytes(4 * 10**6)),
    "coefficients of another dtype": tensor("head", "F16", [1, 20], bytes(40)),
    "coefficients that are not finite": tensor("head", "F32", [1, 20], struct.pack("<f", float("inf")) * 20),
    "another seed": put("seed", value=1),
    "method full": put("method", value={"method": "full"}),
    "method head": put("method", value={"method": "head"}),
}


@pytest.mark.parametrize("kind", HOSTILE_HEADS)
def test_hostile_heads_are_refused(kind: str, good_head: bytes, path: Path) -> None:
    refused(path, forged(good_head, HOSTILE_HEADS[kind]))


@pytest.mark.parametrize("good_head", ["nola"], indirect=True)
def test_coefficients_and_their_head_belong_together(good_head: bytes, path: Path) -> None:
    for change in (lambda _, tensors: tensors.pop("head"), put("head", value=None), _head(k=0)):
        refused(path, forged(good_head, change), "its tensors are not those of its method")


def test_every_flipped_bit_of_a_header_with_a_head_is_refused(good_head: bytes, path: Path) -> None:
    for position in range(0, 8 * len(good_head), 37):
        data = bytearray(good_head)
        data[position // 8] ^= 1 << position % 8
        path.write_bytes(data)
        with pytest.raises(AdapterFileError):
            read(path)
