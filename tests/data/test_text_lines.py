"""Encodings of text files."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_reading import read, refusal

CSV = "text,label\ncafé 日本 😀,a\n"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_tells(tmp_path: Path, encoding: str) -> None:
    assert read(tmp_path / "x.csv", CSV.encode(encoding))[0] == [{"text": "café 日本 😀", "label": "a"}]


def test_big_endian(tmp_path: Path) -> None:
    content = b"\xfe\xff" + '{"text": "é"}\n'.encode("utf-16-be")
    assert read(tmp_path / "x.jsonl", content)[0] == [{"text": "é"}]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_a_mark(tmp_path: Path, encoding: str) -> None:
    assert "UTF-16 without its byte order mark; save the file as UTF-8" in refusal(
        tmp_path / "x.csv", "text,label\na,b\n".encode(encoding)
    )


@pytest.mark.parametrize("name", ["x.csv", "x.txt", "x.jsonl", "x.conll"])
def test_other_encodings_are_told_by_line(tmp_path: Path, name: str) -> None:
    assert "line 2 is not UTF-8; save the file as UTF-8" in refusal(tmp_path / name, b"text,label\ncaf\xe9,a\n")
    assert "line 2 is not UTF-16" in refusal(tmp_path / name, "a,b\nc".encode("utf-16") + b"\x00\xd8")


def test_lines_that_end_in_carriage_returns(tmp_path: Path) -> None:
    assert read(tmp_path / "x.csv", "text,label\ra,b\r")[0] == [{"text": "a", "label": "b"}]
