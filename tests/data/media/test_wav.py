"""WAV files of every plain kind, against values worked out by hand and against the standard library's writer."""

from __future__ import annotations

import contextlib
import io
import struct
import wave

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capaft.wav import decode


def chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def riff(*chunks: bytes) -> bytes:
    content = b"WAVE" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(content)) + content


def header(kind: int, bits: int, channels: int = 1, rate: int = 8000, extra: bytes = b"") -> bytes:
    frame = channels * bits // 8
    return chunk(b"fmt ", struct.pack("<HHIIHH", kind, channels, rate, rate * frame, frame, bits) + extra)


def extensible(kind: int, bits: int) -> bytes:
    guid = struct.pack("<H", kind) + bytes.fromhex("000000001000800000aa00389b71")
    return header(0xFFFE, bits, extra=struct.pack("<HHI", 22, bits, 4) + guid)


SAMPLES = {
    (1, 8): bytes([0, 128, 255]),
    (1, 16): struct.pack("<3h", -(2**15), 0, 2**15 - 1),
    (1, 24): b"\x00\x00\x80" + b"\x00\x00\x00" + b"\xff\xff\x7f",
    (1, 32): struct.pack("<3i", -(2**31), 0, 2**31 - 1),
    (3, 32): struct.pack("<3f", -1, 0, 1),
    (3, 64): struct.pack("<3d", -1, 0, 1),
}
every_kind = pytest.mark.parametrize(("kind", "bits"), SAMPLES)


@every_kind
def test_values(kind: int, bits: int) -> None:
    for head in (header(kind, bits), extensible(kind, bits)):
        decoded = decode(riff(head, chunk(b"LIST", b"odd"), chunk(b"data", SAMPLES[kind, bits]), chunk(b"id3 ", b"x")))
        assert decoded is not None
        samples, rate = decoded
        assert (samples.dtype, samples.shape, rate) == (np.float32, (3, 1), 8000)
        top = 1 if kind == 3 else 1 - 2.0 ** (1 - bits)
        assert samples[:, 0].tolist() == [-1, 0, np.float32(top)]


@given(
    samples=st.lists(st.tuples(st.integers(-(2**15), 2**15 - 1), st.integers(-(2**15), 2**15 - 1)), max_size=20),
    rate=st.integers(1, 192_000),
)
def test_what_the_standard_library_writes(samples: list[tuple[int, int]], rate: int) -> None:
    stream = io.BytesIO()
    with wave.open(stream, "wb") as writer:
        writer.setnchannels(2)
        writer.setsampwidth(2)
        writer.setframerate(rate)
        writer.writeframes(b"".join(struct.pack("<hh", *each) for each in samples))
    decoded = decode(stream.getvalue())
    assert decoded is not None
    assert decoded[1] == rate
    assert (decoded[0] * 2**15).tolist() == [list(each) for each in samples]


def test_what_came_through_a_pipe() -> None:
    content = riff(header(1, 16)) + b"data\xff\xff\xff\xff" + struct.pack("<3h", 1, 2, 3) + b"\0"
    decoded = decode(content)
    assert decoded is not None
    assert len(decoded[0]) == 3


@pytest.mark.parametrize("content", [b"", b"RIFF", b"fLaC and more", riff(header(7, 8), chunk(b"data", b"abc"))])
def test_what_is_no_plain_wav_file(content: bytes) -> None:
    assert decode(content) is None


@pytest.mark.parametrize("kind", [(1, 12), (1, 0), (3, 16), (2, 4)])
def test_kinds_that_are_left_to_others(kind: tuple[int, int]) -> None:
    assert decode(riff(header(*kind), chunk(b"data", b"abcdefgh"))) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (riff(header(1, 16)), "holds no samples"),
        (riff(), "holds no samples"),
        (riff(chunk(b"data", b"ab")), "no format header"),
        (riff(chunk(b"fmt ", b"ab"), chunk(b"data", b"ab")), "no format header"),
        (riff(header(1, 16, channels=0), chunk(b"data", b"ab")), "0 channels"),
        (riff(header(1, 16, rate=0), chunk(b"data", b"ab")), "0 samples a second"),
        (riff(header(1, 16), chunk(b"data", b"abcdefgh"))[:-3], "cut off: 8 bytes of samples promised, 5 there"),
    ],
)
def test_damaged(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode(content)


@given(st.binary(max_size=80))
def test_arbitrary_bytes(content: bytes) -> None:
    for head in (b"", b"RIFF\0\0\0\0WAVE", b"RIFF\0\0\0\0WAVE" + header(1, 16)):
        with contextlib.suppress(ValueError):
            decode(head + content)
