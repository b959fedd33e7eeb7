"""Separators, blanks behind them, hints, and lines that are not rows."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_reading import read, refusal

ROWS = [{"text": "a film", "label": "pos"}, {"text": "b film", "label": "neg"}]
WORDS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}


def table(separator: str) -> str:
    return "".join(f"{a}{separator}{b}\n" for a, b in [("text", "label"), *(row.values() for row in ROWS)])


@pytest.mark.parametrize("separator", WORDS)
@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_the_only_separator_is_read(tmp_path: Path, suffix: str, separator: str) -> None:
    rows, said = read(tmp_path / f"x{suffix}", table(separator))
    assert rows == ROWS
    assert bool(said) == (separator != {".csv": ",", ".tsv": "\t"}[suffix])
    assert all(f"separated by {WORDS[separator]}" in line for line in said)


@pytest.mark.parametrize("separator", WORDS)
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_hint_for_excel(tmp_path: Path, mark: str, separator: str) -> None:
    assert read(tmp_path / "x.csv", f"{mark}sep={separator}\n{table(separator)}") == (ROWS, [])
    assert "line 5 has 1 field(s)" in refusal(tmp_path / "x.csv", f"sep={separator}\n{table(separator)}only\n")


def test_decimal_commas_and_quotes_between_semicolons(tmp_path: Path) -> None:
    rows, _ = read(tmp_path / "x.csv", 'text;score\n"a; ""b""";1,5\nc, d;2,0\n')
    assert rows == [{"text": 'a; "b"', "score": "1,5"}, {"text": "c, d", "score": "2,0"}]


@pytest.mark.parametrize("content", ["text;label\na\nb;c;d\n", "a;b\tc\nd;e\tf\n"])
def test_no_separator_or_several_is_refused(tmp_path: Path, content: str) -> None:
    assert "the columns are separated by" in refusal(tmp_path / "x.csv", content)


@pytest.mark.parametrize(
    "content",
    [
        'label, text\npos, "a, b"\nneg, "c"\n',
        'label, text\npos, "a, b"\nneg, c\n',
        'label,text\npos, "a, b"\nneg, "c"\n',
        'label,text\npos,   "a, b"\nneg,c\n',
    ],
)
def test_blanks_before_quotes(tmp_path: Path, content: str) -> None:
    assert read(tmp_path / "x.csv", content)[0] == [{"label": "pos", "text": "a, b"}, {"label": "neg", "text": "c"}]


def test_blanks_before_quotes_without_commas_between(tmp_path: Path) -> None:
    assert read(tmp_path / "x.csv", 'label,text\npos, "a b"\nneg, "c"\n')[0][0] == {"label": "pos", "text": "a b"}


def test_numbers_behind_blanks(tmp_path: Path) -> None:
    assert read(tmp_path / "x.csv", "text, label\na, 1\nb, 0\n")[0] == [
        {"text": "a", "label": 1},
        {"text": "b", "label": 0},
    ]


def test_blanks_in_text_stay(tmp_path: Path) -> None:
    rows, _ = read(tmp_path / "x.csv", 'text,label\n" ""a"" b",1\n  c,2\n')
    assert [row["text"] for row in rows] == [' "a" b', "  c"]


def test_names_in_quotes_make_quotes_of_a_tsv(tmp_path: Path) -> None:
    assert read(tmp_path / "x.tsv", '"text"\t"label"\n"a\tb"\t"1"\n')[0] == [{"text": "a\tb", "label": 1}]


def test_repeated_names_are_left_out(tmp_path: Path) -> None:
    rows, said = read(tmp_path / "x.csv", "text,label\na,1\ntext,label\nb,2\n")
    assert [row["label"] for row in rows] == [1, 2]
    assert "1 further line repeats the column names, and is left out" in said[0]


def test_one_column_with_a_bar_in_its_name(tmp_path: Path) -> None:
    assert read(tmp_path / "x.csv", "a|b\nc\nd\n")[0] == [{"a|b": "c"}, {"a|b": "d"}]
