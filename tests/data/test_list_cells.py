"""Lists that stand in cells as text."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from tiny_reading import read, refusal

from capaft.data.tables import read_rows

ROWS = [{"tokens": ["a", "it's", 'b"'], "tags": [0, 1, 2]}, {"tokens": ["c"], "tags": [3]}]


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_as_python_prints_them(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    pd.DataFrame(ROWS).to_csv(path, index=False, sep="\t" if suffix == ".tsv" else ",", quoting=1)
    rows, said = read(path, path.read_bytes())
    assert rows == ROWS
    assert "the cells of 'tokens', 'tags' are written as lists" in said[0]


def test_as_json_with_gaps(tmp_path: Path) -> None:
    rows, _ = read(tmp_path / "x.csv", 'text,labels\na,"[""x"", ""y""]"\nb,[]\nc,\n')
    assert [row["labels"] for row in rows] == [["x", "y"], [], None]


@pytest.mark.parametrize(
    "cell",
    ["[deleted]", "[1, 2", "['a', b]", "[1,  2]x", "('a', 'b')", "[__import__('os')]", "[1][0]", "[" * 9999 + "]"],
)
def test_other_text_stays(tmp_path: Path, cell: str) -> None:
    quoted = '"' + cell.replace('"', '""') + '"'
    assert read(tmp_path / "x.csv", f"text,label\n{quoted},0\n{quoted},1\n")[0][0]["text"] == cell


def test_numpy_prints_no_commas(tmp_path: Path) -> None:
    assert "as numpy prints arrays; write them as JSON" in refusal(
        tmp_path / "x.csv", "tokens,n\n\"['a' 'b']\",1\n\"['c']\",2\n"
    )


def test_columns_that_are_to_stay_text(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("text,label\n[1],0\n[2],1\n")
    assert read_rows(tmp_path / "x.csv", ("text",))["text"][:] == ["[1]", "[2]"]
