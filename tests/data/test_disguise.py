"""Files whose names say one thing and whose content is another."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_reading import read, refusal

ROWS = [{"text": "a, b", "label": "x"}, {"text": "c", "label": "y"}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


@pytest.mark.parametrize("name", ["x.csv", "x.tsv", "x.txt"])
@pytest.mark.parametrize("content", [LINES, json.dumps(ROWS), json.dumps(ROWS, indent=1)])
def test_json_by_another_name(tmp_path: Path, name: str, content: str) -> None:
    rows, said = read(tmp_path / name, content)
    assert rows == ROWS
    assert "which its content is" in said[0]


@pytest.mark.parametrize("name", ["x.json", "x.jsonl", "x.ndjson"])
@pytest.mark.parametrize("content", ['text,label\n"a, b",x\nc,y\n', "text\tlabel\na, b\tx\nc\ty\n"])
def test_csv_named_like_json(tmp_path: Path, name: str, content: str) -> None:
    rows, said = read(tmp_path / name, content)
    assert rows == ROWS
    assert "read as .csv, which its content is" in said[0]


def test_no_table_named_like_json(tmp_path: Path) -> None:
    assert "line 1 is not JSON" in refusal(tmp_path / "x.jsonl", "some prose\nand more, of it\n")


@pytest.mark.parametrize("name", ["x.csv", "x.json", "x.arrow"])
def test_parquet_by_another_name(tmp_path: Path, name: str) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "x")
    assert read(tmp_path / name, (tmp_path / "x").read_bytes())[0] == ROWS


@pytest.mark.parametrize("name", ["x.csv", "x.json", "x.parquet", "x.txt", "x.arrow"])
def test_web_pages_and_pointers(tmp_path: Path, name: str) -> None:
    for page in ("<!DOCTYPE html>\n<p>a,b", "\n <HTML><body>404</body>", '<?xml version="1.0"?><Error/>'):
        assert "this is a web page" in refusal(tmp_path / name, page)
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    assert "git lfs pull" in refusal(tmp_path / name, pointer)


def test_text_that_begins_with_a_brace_or_a_mark_stays_text(tmp_path: Path) -> None:
    assert read(tmp_path / "x.txt", "{so} it goes\n<s> and on\n")[0] == [
        {"text": "{so} it goes"},
        {"text": "<s> and on"},
    ]
