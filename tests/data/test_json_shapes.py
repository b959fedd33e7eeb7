"""Documents of every shape that pandas and others write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from tiny_reading import read, refusal

ROWS: list[dict[str, Any]] = [{"text": f"NA {row}", "label": row % 2} for row in range(12)]
FRAME = pd.DataFrame(ROWS)


@pytest.mark.parametrize("orient", ["columns", "index", "split", "table", "records"])
@pytest.mark.parametrize("indent", [None, 1])
def test_pandas(tmp_path: Path, orient: Any, indent: int | None) -> None:
    rows, _ = read(tmp_path / "x.json", FRAME.to_json(orient=orient, indent=indent))
    assert [{name: row[name] for name in ROWS[0]} for row in rows] == ROWS


def test_columns_of_lists(tmp_path: Path) -> None:
    assert read(tmp_path / "x.json", json.dumps(FRAME.to_dict(orient="list")))[0] == ROWS


@pytest.mark.parametrize(
    "document",
    [{"data": ROWS}, {"version": "1", "rows": ROWS}, {"meta": {"n": 1}, "tags": ["a"], "examples": ROWS}],
)
@pytest.mark.parametrize("indent", [None, 1])
def test_records_under_a_key(tmp_path: Path, document: Any, indent: int | None) -> None:
    assert read(tmp_path / "x.json", json.dumps(document, indent=indent))[0] == ROWS


def test_records_by_name(tmp_path: Path) -> None:
    assert read(tmp_path / "x.json", json.dumps({f"q{at}": row for at, row in enumerate(ROWS)}))[0] == ROWS


def test_what_is_not_clear_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    assert "several lists of records, train, test" in refusal(path, json.dumps({"train": ROWS, "test": ROWS}))
    assert "columns or rows come first" in refusal(path, json.dumps({"x": {"a": 1, "b": 2}, "y": {"a": 1, "b": 2}}))
    assert "record 1 is not a record" in refusal(path, json.dumps([["a", 1], ["b", 2]]))
    assert "this is a single record" in refusal(path, json.dumps({"error": "not found"}, indent=1))


def test_a_chat_is_one_record(tmp_path: Path) -> None:
    chat = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    assert read(tmp_path / "x.json", json.dumps(chat))[0] == [chat]
