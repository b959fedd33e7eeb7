"""Lines that are not JSON, lines that are cut off, and halves of characters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_reading import read, refusal

GOOD = "".join(json.dumps({"text": f"text {row}"}) + "\n" for row in range(20))


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('{"text": oops}', "is not JSON (Expecting value"),
        ("[1]", "is not a record"),
        ("null", "is not a record"),
        ('{"a": ' + "[" * 100_000, "is not JSON"),
    ],
)
@pytest.mark.parametrize("at", [0, 10])
def test_a_few_lines_are_left_out(tmp_path: Path, line: str, fault: str, at: int) -> None:
    lines = GOOD.splitlines()
    content = "\n".join([*lines[:at], line, *lines[at:]]) + "\n"
    rows, (said,) = read(tmp_path / "x.jsonl", content)
    assert len(rows) == 20
    assert said.startswith(
        f"1 of 21 lines of {tmp_path / 'x.jsonl'} cannot be used and is left out: line {at + 1} {fault}"
    )
    assert "--strict" in refusal(tmp_path / "x.jsonl", content, strict=True)


def test_many_are_refused(tmp_path: Path) -> None:
    message = refusal(tmp_path / "x.jsonl", GOOD + "oops\n" * 12 + GOOD[:20])
    assert "cut off" in message
    message = refusal(tmp_path / "x.jsonl", GOOD + "oops\n" * 12)
    assert message.startswith("12 of 32 lines of")
    assert "too many to leave out (line 21 is not JSON" in message
    assert "; and 7 more)" in message


@pytest.mark.parametrize(
    "end", ['{"text": "and', '{"text": "and"', '{"text": "and", ', '{"text"', "{", '{"text": "and\n']
)
def test_a_last_line_that_is_cut_off_is_never_left_out(tmp_path: Path, end: str) -> None:
    assert "line 21 is not JSON: this last line is cut off" in refusal(tmp_path / "x.jsonl", GOOD + end)


@pytest.mark.parametrize("name", ["x.jsonl", "x.json"])
def test_half_a_character(tmp_path: Path, name: str) -> None:
    rows = [{"text": "a\ud83d b", "more": [{"deep": "\ude00"}]}, {"text": "\U0001f600", "more": []}]
    content = json.dumps(rows) if name == "x.json" else "\n".join(map(json.dumps, rows))
    read_rows, (said,) = read(tmp_path / name, content)
    assert read_rows == [{"text": "a\ufffd b", "more": [{"deep": "\ufffd"}]}, {"text": "\U0001f600", "more": []}]
    assert "1 of 2 rows has half a character" in said
    assert said.endswith("becomes U+FFFD: row 1")


def test_whole_characters_in_escapes_stay(tmp_path: Path) -> None:
    assert read(tmp_path / "x.jsonl", '{"text": "\\ud83d\\ude00"}\n') == ([{"text": "\U0001f600"}], [])
