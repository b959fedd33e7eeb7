"""Excel workbooks."""

from __future__ import annotations

import datetime
import sys
from pathlib import Path

import openpyxl
import pandas as pd
import pytest
from tiny_reading import read, refusal

from capaft.data import compressed


def save(path: Path, **sheets: list[list[object]]) -> bytes:
    book = openpyxl.Workbook()
    book.remove(book.active)
    for title, rows in sheets.items():
        sheet = book.create_sheet(title)
        for row in rows:
            sheet.append(row)
    book.save(path)
    return path.read_bytes()


TABLE: list[list[object]] = [
    ["text", "label", "when"],
    ["NA", 1, datetime.date(2024, 1, 2)],
    ["007", 0, None],
    [None] * 3,
]


def test_cells_stay_as_they_are(tmp_path: Path) -> None:
    content = save(tmp_path / "x", first=TABLE, second=[])
    assert read(tmp_path / "x.xlsx", content)[0] == [
        {"text": "NA", "label": 1, "when": "2024-01-02T00:00:00"},
        {"text": "007", "label": 0, "when": None},
    ]
    assert len(read(tmp_path / "x.csv", content)[0]) == 2


def test_pandas_index(tmp_path: Path) -> None:
    pd.DataFrame({"text": ["a", "b"], "label": ["x", "y"]}).to_excel(tmp_path / "x.xlsx")
    assert list(read(tmp_path / "x.xlsx", (tmp_path / "x.xlsx").read_bytes())[0][0]) == ["Unnamed: 0", "text", "label"]


def test_several_sheets_none_and_damage(tmp_path: Path) -> None:
    path = tmp_path / "x.xlsx"
    assert "several sheets have rows, a, b" in refusal(path, save(path, a=TABLE, b=TABLE))
    assert "there are no rows" in refusal(path, save(path, a=[]))
    assert "two columns have the same name" in refusal(path, save(path, a=[["a", "a"], [1, 2]]))
    assert "cannot read this workbook" in refusal(path, b"PK and nothing more")


def test_a_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = save(tmp_path / "x", a=[["text"], *[["a" * 1000]] * 2000])
    monkeypatch.setattr(compressed, "_ALWAYS_ALLOWED", 2**10)
    monkeypatch.setattr(compressed, "_MOST_TIMES", 1)
    assert "unpacks to more than" in refusal(tmp_path / "x.xlsx", content)


def test_without_openpyxl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = save(tmp_path / "x", a=TABLE)
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    assert "pip install openpyxl" in refusal(tmp_path / "x.xlsx", content)
