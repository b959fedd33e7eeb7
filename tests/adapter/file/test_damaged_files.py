"""No file that is damaged, foreign or ambiguous is read."""

from __future__ import annotations

import os
import pickle
import random
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import naive_reader
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import bert
from tiny_files import (
    adapted,
    bounded,
    canonical,
    digest,
    envelope,
    enveloped,
    equal,
    forged,
    pack,
    refused,
    trained_values,
    unpack,
)

from capaft.adapter.file.adapter_file import read
from capaft.adapter.file.save_load import load
from capaft.support.errors import AdapterFileError


def test_a_file_made_by_hand_is_as_good(good: bytes, path: Path) -> None:
    path.write_bytes(forged(good, lambda header, tensors: None))
    model = bert()
    load(model, path)
    assert equal(trained_values(model), trained_values(adapted()))


def test_every_truncation_is_refused(good: bytes, path: Path) -> None:
    for length in range(0, len(good), 3):
        path.write_bytes(good[:length])
        with pytest.raises(AdapterFileError):
            read(path)
    refused(path, good[:-1], "truncated")


def test_bytes_at_the_end_are_refused(good: bytes, path: Path) -> None:
    refused(path, good + b"\0", "bytes that its header does not name")


def test_every_flipped_bit_is_refused(good: bytes, path: Path) -> None:
    """Every eleventh of them: eleven and eight have no common divisor, so every bit of a byte has its turn."""
    for position in range(0, 8 * len(good), 11):
        data = bytearray(good)
        data[position // 8] ^= 1 << position % 8
        path.write_bytes(data)
        with pytest.raises(AdapterFileError):
            read(path)


@given(st.binary(max_size=300))
@settings(max_examples=100, deadline=None)
def test_random_bytes_are_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "random.safetensors"
    for content in (data, envelope(data), envelope(data, data)):
        file.write_bytes(content)
        with pytest.raises(AdapterFileError):
            read(file)


@pytest.mark.parametrize(
    ("dtype", "shape"), [("I8", [4, 9, 4]), ("U8", [144]), ("F16", [4, 18]), ("F32", [36]), ("F32", [1, 36])]
)
def test_the_digest_tells_dtypes_and_shapes(dtype: str, shape: list[int], good: bytes, path: Path) -> None:
    header, tensors = unpack(good)
    tensors["down"] = (dtype, shape, tensors["down"][2])
    wrong = header["digest"]["tensors"]
    path.write_bytes(pack(header, tensors))
    assert header["digest"]["tensors"] != wrong
    header["digest"] |= {"tensors": wrong}
    del header["digest"]["header"]
    header["digest"]["header"] = digest(canonical(header).encode())
    path.write_bytes(enveloped(header, tensors))
    with pytest.raises(AdapterFileError, match="do not match their digest"):
        read(path)


def test_mutated_files_are_refused(good: bytes, path: Path) -> None:
    """Bytes changed, moved, doubled, cut; and digits, quotes, braces in the JSON, with its length made right again."""
    draw, length = random.Random(1), int.from_bytes(good[:8], "little")
    refusals = 0
    for _ in range(3000):
        data = bytearray(good)
        for _ in range(draw.choice([1, 1, 2, 5])):
            start = draw.randrange(len(data))
            part = slice(start, start + draw.choice([0, 1, 1, 2, 8, 40]))
            data[part] = draw.choice(
                [
                    b"",
                    bytes(data[part]) * 2,
                    draw.randbytes(1),
                    b'"',
                    b"{",
                    b"}",
                    b"[",
                    b"\\",
                    b"-",
                    b"9",
                    b"e",
                    b",",
                    b"\xed\xa0\x80",
                ]
            )
        if draw.random() < 0.5 and len(data) > 8:
            data[:8] = struct.pack("<Q", max(length + len(data) - len(good), 0))
        path.write_bytes(data)
        try:
            file = read(path)
        except AdapterFileError:
            refusals += 1
        else:  # Nothing was changed, or JSON has another form of the same.
            assert file.header.record() == unpack(good)[0]
    assert refusals > 2900


# The digests cover the header and the tensors; the JSON around them means one thing, or nothing.


ODD: dict[str, Callable[[bytes], bytes]] = {
    "the metadata twice": lambda text: text.replace(b'{"__metadata__":', b'{"__metadata__":{},"__metadata__":', 1),
    "the header twice": lambda text: text.replace(b'{"capaft":', b'{"capaft":"","capaft":', 1),
    "a tensor twice": lambda text: text.replace(b'"down":', b'"down":{},"down":', 1),
    "a dtype twice": lambda text: text.replace(b'{"dtype":"F32"', b'{"dtype":"F16","dtype":"F32"', 1),
    "a tensor with a further key": lambda text: text.replace(b'{"dtype"', b'{"comment":1,"dtype"', 1),
    "fractional offsets": lambda text: re.sub(rb'"data_offsets":\[0,', b'"data_offsets":[0.0,', text, count=1),
    "true offsets": lambda text: re.sub(rb'"data_offsets":\[0,', b'"data_offsets":[false,', text, count=1),
    "NaN beside it": lambda text: text.replace(b'"down":', b'"a":NaN,"down":', 1),
    "half a pair in a name": lambda text: text.replace(b'"down":', b'"\\ud800":', 1),
    "half a pair as it is": lambda text: text.replace(b'"down":', b'"\xed\xa0\x80":', 1),
    "half a pair in the header": lambda text: text.replace(b"so so", b"\\\\ud800", 1),
    "a raw character in the header": lambda text: text.replace(b"so so", "so\u00e9so".encode(), 1),
    "an escape too many": lambda text: text.replace(b"so so", b"\\\\u0073o so", 1),
}


@pytest.mark.parametrize("kind", ODD)
def test_what_two_readers_could_take_in_two_ways_is_refused(kind: str, good: bytes, path: Path) -> None:
    length = int.from_bytes(good[:8], "little")
    text = ODD[kind](good[8 : 8 + length])
    assert text != good[8 : 8 + length]
    content = envelope(text, good[8 + length :])
    with pytest.raises(naive_reader.Damaged):
        naive_reader.read(content)
    refused(path, content)


# Foreign files


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("unpickled",)


PEFT = {"base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight": torch.zeros(3, 32)}
DEEP = b"[" * 200_000 + b"]" * 200_000
FOREIGN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "truncated or is not an adapter"),
    "text": (b"adapter: none\n", "truncated or is not an adapter"),
    "pickle": (pickle.dumps(Bomb()), "truncated or is not an adapter"),
    "zip": (b"PK\x03\x04" + bytes(60), "truncated or is not an adapter"),
    "random": (random.Random(0).randbytes(5000), "truncated or is not an adapter"),
    "PEFT": (safetensors.torch.save(PEFT, {"format": "pt"}), "not a capaft adapter; of a PEFT"),
    "model": (safetensors.torch.save(PEFT), "not a capaft adapter"),
    "more metadata": (safetensors.torch.save(PEFT, {"capaft": "{}", "format": "pt"}), "not a capaft adapter"),
    "list": (envelope([]), "damaged or is not an adapter"),
    "deep": (envelope(DEEP), "damaged or is not an adapter"),
    "deep inside": (envelope({"__metadata__": {"capaft": DEEP.decode()}}), "not JSON, or not in this form"),
    "metadata of another type": (envelope({"__metadata__": ["capaft"]}), "damaged or is not an adapter"),
    "header of another type": (envelope({"__metadata__": {"capaft": {}}}), "not a capaft adapter"),
    "not UTF-8": (envelope(b'{"\xff\xfe": 1}'), "damaged or is not an adapter"),
    "UTF-16": (envelope('{"__metadata__":{"capaft":"{}"}}'.encode("utf-16")), "damaged or is not an adapter"),
    "UTF-8 with a mark": (
        envelope('{"__metadata__":{"capaft":"{}"}}'.encode("utf-8-sig")),
        "damaged or is not an adapter",
    ),
    "a number of many digits": (envelope(b'{"a":' + b"9" * 100_000 + b"}"), "damaged or is not an adapter"),
    "a length beyond the end": (struct.pack("<Q", 2**63) + b"{}", "truncated or is not an adapter"),
    "a header of a gigabyte": (struct.pack("<Q", 2**30) + b"{}", "truncated or is not an adapter"),
    "a header of 17 MB": (
        envelope(b"{}" + b" " * 17_000_000),
        "has a header of 17,000,002 bytes, and at most 16,777,216",
    ),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_files_are_refused(kind: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    refused(path, *FOREIGN[kind])
    assert os.listdir(path.parent) == [path.name]


def test_a_foreign_file_is_refused_whatever_its_size(path: Path) -> None:
    path.write_bytes(safetensors.torch.save(PEFT))
    os.truncate(path, 2**36)
    with bounded(), pytest.raises(AdapterFileError, match="not a capaft adapter"):
        read(path)


def test_what_is_no_file_is_said(path: Path) -> None:
    with pytest.raises(AdapterFileError, match=r"cannot read .*No such file"):
        read(path)
    with pytest.raises(AdapterFileError, match=r"holds no adapter\.safetensors or other adapter file"):
        read(path.parent)


def _entry(shape: list[Any], stop: Any = 4, dtype: str = "F32", start: Any = 0) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


ENTRIES: dict[str, Any] = {
    "huge": _entry([2**62, 2**62]),
    "huge and empty": _entry([2**62, 0], 0),
    "huge in small steps": _entry([10**6] * 300_000),
    "negative": _entry([-1, -1]),
    "fractional": _entry([1.0]),
    "true": _entry([True]),
    "overlapping": _entry([1], start=-4, stop=0),
    "offsets of another type": _entry([1], "4"),
    "no offsets": {"dtype": "F32", "shape": [1]},
    "three offsets": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 4]},
    "unknown dtype": _entry([1], dtype="F128"),
    "dtype of another type": {"dtype": [], "shape": [1], "data_offsets": [0, 4]},
    "no entry": 5,
    "null": None,
}


@pytest.mark.parametrize("kind", ENTRIES)
def test_tensors_that_lie_wrong_are_refused(kind: str, path: Path) -> None:
    refused(path, envelope({"__metadata__": {"capaft": "{}"}, "down": ENTRIES[kind]}, bytes(4)), "damaged")
