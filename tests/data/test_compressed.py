"""Compressed files, those that are too much, and archives."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from tiny_data import load
from tiny_reading import read, refusal

from capaft.data import compressed

CSV = b"text,label\nA,pos\nB,neg\nC,pos\n"
ROWS = [{"text": "A", "label": "pos"}, {"text": "B", "label": "neg"}, {"text": "C", "label": "pos"}]


def zst(content: bytes) -> bytes:
    buffer = pa.BufferOutputStream()
    with pa.CompressedOutputStream(buffer, "zstd") as stream:
        stream.write(content)
    return buffer.getvalue().to_pybytes()


def archive(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


PACK: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zst,
    ".zip": lambda content: archive(**{"any.csv": content, "__MACOSX/._any.csv": b"x"}),
}


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize("name", ["x.csv{}", "X.CSV{}"])
def test_packed(tmp_path: Path, suffix: str, name: str) -> None:
    assert read(tmp_path / name.format(suffix), PACK[suffix](CSV)) == (ROWS, [])


@pytest.mark.parametrize("suffix", PACK)
def test_the_content_decides(tmp_path: Path, suffix: str) -> None:
    assert read(tmp_path / "packed.csv", PACK[suffix](CSV))[0] == ROWS
    assert read(tmp_path / f"unpacked.csv{suffix}", CSV)[0] == ROWS


def test_several_parts_of_gzip_and_a_zip_by_its_only_file(tmp_path: Path) -> None:
    assert read(tmp_path / "x.csv.gz", gzip.compress(CSV[:20]) + gzip.compress(CSV[20:]))[0] == ROWS
    assert read(tmp_path / "x.zip", archive(**{"in/it.jsonl": b'{"text": "A"}\n'}))[0][0] == {"text": "A"}


@pytest.mark.parametrize("suffix", PACK)
def test_cut_off(tmp_path: Path, suffix: str) -> None:
    assert "cannot unpack this file" in refusal(tmp_path / f"x.csv{suffix}", PACK[suffix](CSV)[:-9])


@pytest.mark.parametrize("suffix", PACK)
def test_a_bomb(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compressed, "_ALWAYS_ALLOWED", 2**21)
    message = refusal(tmp_path / f"x.csv{suffix}", PACK[suffix](bytes(2**24)))
    assert "unpacks to more than 2 MiB" in message


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.csv": CSV, "b.csv": CSV}, "this archive holds a.csv, b.csv"),
        ({}, "not a data file"),
        ({"../a.csv": CSV}, "a name that points elsewhere"),
        ({"/etc/a.csv": CSV}, "a name that points elsewhere"),
        ({"a.png": b"x"}, "not a data file that capaft reads (it holds .png)"),
    ],
)
def test_archives_that_are_refused(tmp_path: Path, members: dict[str, bytes], message: str) -> None:
    assert message in refusal(tmp_path / "x.zip", archive(**members))


def test_splits_of_a_directory(tmp_path: Path) -> None:
    (tmp_path / "train.csv.gz").write_bytes(gzip.compress(CSV))
    (tmp_path / "dev-00000-of-00001.csv.zst").write_bytes(zst(CSV))
    splits = load(str(tmp_path))
    assert (list(splits["train"]), list(splits["validation"])) == (ROWS, ROWS)
