"""WAV files of every plain kind, against values worked out by hand and against the standard library's writer."""

from __future__ import annotations

import contextlib
import io
import struct
import sys
import wave

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capaft.data.media.decode import open_audio
from capaft.support.errors import UsageError


def chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def riff(*chunks: bytes) -> bytes:
    content = b"WAVE" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(content)) + content


def header(kind: int, bits: int, channels: int = 1, rate: int = 8000, extra: bytes = b"") -> bytes:
    frame = channels * bits // 8
    return chunk(b"fmt ", struct.pack("<HHIIHH", kind, channels, rate, rate * frame, frame, bits) + extra)


def extensible(kind: int, bits: int, channels: int = 1) -> bytes:
    guid = struct.pack("<H", kind) + bytes.fromhex("000000001000800000aa00389b71")
    return header(0xFFFE, bits, channels, extra=struct.pack("<HHI", 22, bits, 4) + guid)


SAMPLES = {
    (1, 8): [bytes([sample]) for sample in (0, 128, 255)],
    (1, 16): [struct.pack("<h", sample) for sample in (-(2**15), 0, 2**15 - 1)],
    (1, 24): [b"\x00\x00\x80", b"\x00\x00\x00", b"\xff\xff\x7f"],
    (1, 32): [struct.pack("<i", sample) for sample in (-(2**31), 0, 2**31 - 1)],
    (3, 32): [struct.pack("<f", sample) for sample in (-1, 0, 1)],
    (3, 64): [struct.pack("<d", sample) for sample in (-1, 0, 1)],
}


@pytest.fixture
def without_soundfile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "soundfile", None)


@pytest.mark.usefixtures("without_soundfile")
@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize(("kind", "bits"), SAMPLES)
def test_values(kind: int, bits: int, channels: int) -> None:
    body = b"".join(sample * channels for sample in SAMPLES[kind, bits])
    for head in (header(kind, bits, channels), extensible(kind, bits, channels)):
        samples, rate = open_audio(riff(head, chunk(b"LIST", b"odd"), chunk(b"data", body), chunk(b"id3 ", b"x")))
        assert (samples.dtype, samples.shape, rate) == (np.float32, (3,), 8000)
        top = 1 if kind == 3 else 1 - 2.0 ** (1 - bits)
        assert samples.tolist() == [-1, 0, np.float32(top)]


@given(
    frames=st.lists(
        st.tuples(st.integers(-(2**15), 2**15 - 1), st.integers(-(2**15), 2**15 - 1)), min_size=1, max_size=20
    ),
    rate=st.integers(1, 192_000),
)
def test_what_the_standard_library_writes(frames: list[tuple[int, int]], rate: int) -> None:
    stream = io.BytesIO()
    with wave.open(stream, "wb") as writer:
        writer.setnchannels(2)
        writer.setsampwidth(2)
        writer.setframerate(rate)
        writer.writeframes(b"".join(struct.pack("<hh", *frame) for frame in frames))
    samples, read_rate = open_audio(stream.getvalue())
    assert read_rate == rate
    assert (samples * 2**16).tolist() == [left + right for left, right in frames]


@pytest.mark.parametrize("size", [0, 36, 44, 50, 58, 2**32 - 1])
@pytest.mark.parametrize("unknown", [False, True])
def test_sizes_that_a_writer_left_wrong(size: int, unknown: bool) -> None:
    """A writer to a pipe knows no sizes, and the size of the whole file is often wrong elsewhere too."""
    content = riff(header(1, 16), chunk(b"data", struct.pack("<3h", 1, 2, 3)))
    content = content[:4] + struct.pack("<I", size) + content[8:]
    if unknown:
        content = content[:40] + b"\xff" * 4 + content[44:]
    assert (open_audio(content)[0] * 2**15).tolist() == [1, 2, 3]


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(("kind", "bits"), SAMPLES)
def test_a_pipe_cut_within_a_frame(kind: int, bits: int, channels: int) -> None:
    body = b"".join(sample * channels for sample in SAMPLES[kind, bits])
    for cut in range(1, channels * bits // 8):
        samples, _ = open_audio(riff(header(kind, bits, channels)) + b"data\xff\xff\xff\xff" + body[:-cut])
        assert samples.tolist() == [-1, 0]


@pytest.mark.parametrize("sized", [False, True])
def test_an_odd_byte_after_the_last_frame(sized: bool) -> None:
    body = struct.pack("<3h", 1, 2, 3) + b"\0"
    data = chunk(b"data", body) if sized else b"data\xff\xff\xff\xff" + body
    assert (open_audio(riff(header(1, 16)) + data)[0] * 2**15).tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    "after", [b"\0", b"\0" * 5, b"stray bytes", chunk(b"data", b"abcd"), b"data\xff\0\0\0a", header(1, 0), header(7, 8)]
)
def test_what_follows_the_samples(after: bytes) -> None:
    content = riff(header(1, 16), chunk(b"data", struct.pack("<3h", 1, 2, 3)), after)
    assert (open_audio(content)[0] * 2**15).tolist() == [1, 2, 3]


@pytest.mark.parametrize(("byte_rate", "frame"), [(8000, 2), (0, 0), (16000, 1), (16000, 4)])
def test_derived_fields_that_a_writer_left_wrong(byte_rate: int, frame: int) -> None:
    head = chunk(b"fmt ", struct.pack("<HHIIHH", 1, 1, 8000, byte_rate, frame, 16))
    content = riff(head, chunk(b"data", struct.pack("<4h", 1, 2, 3, 4)))
    assert (open_audio(content)[0] * 2**15).tolist() == [1, 2, 3, 4]


@pytest.mark.usefixtures("without_soundfile")
@pytest.mark.parametrize(
    "content",
    [
        b"RIFF",
        b"fLaC and more",
        riff(header(7, 8), chunk(b"data", b"abc")),
        *(riff(header(*kind), chunk(b"data", b"abcdefgh")) for kind in ((1, 12), (1, 0), (1, 64), (3, 16), (2, 4))),
    ],
)
def test_kinds_that_are_left_to_soundfile(content: bytes) -> None:
    with pytest.raises(UsageError, match="not a plain WAV file; to read it, pip install soundfile"):
        open_audio(content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (riff(header(1, 16)), "cut off or damaged: Unexpected end of file"),
        (riff(), "cut off or damaged: Unexpected end of file"),
        (riff(chunk(b"data", b"ab")), "cut off or damaged: No fmt chunk"),
        (riff(chunk(b"fmt ", b"ab"), chunk(b"data", b"ab")), "cut off or damaged: Binary structure"),
        (riff(header(1, 16, channels=0), chunk(b"data", b"ab")), "its header says 0 channels and 8000 samples"),
        (riff(header(1, 16, rate=0), chunk(b"data", b"ab")), "its header says 1 channels and 0 samples a second"),
        *(
            (riff(header(1, 16), chunk(b"data", b"abcdefgh"))[:-cut], f"damaged: 8 bytes promised, {8 - cut} left")
            for cut in range(1, 9)
        ),
        (riff(header(1, 16), chunk(b"data", b"abcdefgh"))[:-9], "cut off or damaged: "),
        (riff(header(1, 16), chunk(b"data", b"abcdefgh"))[:20], "cut off or damaged: "),
    ],
)
def test_damaged(content: bytes, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_audio({"path": "bark.wav", "bytes": content})
    assert str(caught.value).startswith("bark.wav: cannot read this recording (it")
    assert message in str(caught.value)
    assert str(caught.value).endswith("; replace or remove it")


@given(st.binary(max_size=80))
def test_arbitrary_bytes(content: bytes) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "soundfile", None)
        for head in (b"", b"RIFF\0\0\0\0WAVE", b"RIFF\0\0\0\0WAVE" + header(1, 16)):
            with contextlib.suppress(UsageError):
                open_audio(head + content)
