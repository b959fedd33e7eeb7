"""Texts with marked spans, as annotation tools write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_reading import read, refusal

TEXT = "Angela Merkel lives in Berlin."
WORDS = ["Angela", "Merkel", "lives", "in", "Berlin", "."]
TAGS = ["B-PER", "I-PER", "O", "O", "B-LOC", "O"]
PLACES = [(0, 13, "PER"), (23, 29, "LOC")]


def result(start: int, end: int, label: str) -> dict[str, Any]:
    return {"type": "labels", "to_name": "text", "value": {"start": start, "end": end, "text": "", "labels": [label]}}


RECORDS: dict[str, tuple[str, Any]] = {
    "doccano": ("label", {"text": TEXT, "label": [list(p) for p in PLACES]}),
    "doccano of today": (
        "entities",
        {"text": TEXT, "entities": [{"start_offset": s, "end_offset": e, "label": n} for s, e, n in PLACES]},
    ),
    "spaCy, trained": ("entities", [TEXT, {"entities": PLACES}]),
    "spaCy, predicted": ("ents", {"text": TEXT, "ents": [{"start": s, "end": e, "label": n} for s, e, n in PLACES]}),
    "pipeline": (
        "entities",
        {"sentence": TEXT, "entities": [{"entity_group": n, "start": s, "end": e} for s, e, n in PLACES]},
    ),
    "Label Studio": ("spans", {"data": {"text": TEXT}, "annotations": [{"result": [result(*p) for p in PLACES]}]}),
    "Label Studio, short": ("label", {"text": TEXT, "label": [result(*p)["value"] for p in PLACES]}),
}


@pytest.mark.parametrize("tool", RECORDS)
def test_tools(tmp_path: Path, tool: str) -> None:
    tags, record = RECORDS[tool]
    rows, said = read(tmp_path / "x.json", json.dumps([record] * 3))
    text = "sentence" if tool == "pipeline" else "text"
    assert [(row[text], row[tags]) for row in rows] == [(WORDS, TAGS)] * 3
    assert "become tags of the words" in said[-1]


def test_in_cells_and_in_parquet(tmp_path: Path) -> None:
    record = {"text": TEXT, "entities": [{"start": s, "end": e, "label": n} for s, e, n in PLACES]}
    pd.DataFrame([record | {"entities": json.dumps(record["entities"])}] * 2).to_csv(tmp_path / "x", index=False)
    assert read(tmp_path / "x.csv", (tmp_path / "x").read_bytes())[0][1] == {"text": WORDS, "entities": TAGS}
    pq.write_table(pa.Table.from_pylist([record] * 2), tmp_path / "x")
    assert read(tmp_path / "x.parquet", (tmp_path / "x").read_bytes())[0][1] == {"text": WORDS, "entities": TAGS}


def test_prodigy(tmp_path: Path) -> None:
    tokens = [{"start": 0, "end": 13}, {"start": 14, "end": 29}, {"start": 29, "end": 30}]
    record = {"text": TEXT, "tokens": tokens, "spans": [{"start": 0, "end": 13, "label": "PER"}]}
    lines = [json.dumps(record | {"answer": answer}) for answer in ("accept", "reject", "accept", "ignore")]
    rows, said = read(tmp_path / "x.jsonl", "\n".join(lines))
    assert rows == [{"text": ["Angela Merkel", "lives in Berlin", "."], "spans": ["B-PER", "O", "O"]}] * 2
    assert "2 of 4 rows are not accepted, and are left out" in said[0]


def test_prodigy_without_spans(tmp_path: Path) -> None:
    lines = [json.dumps({"text": TEXT, "label": "x", "answer": answer}) for answer in ("accept", "reject")]
    assert read(tmp_path / "x.jsonl", "\n".join(lines))[0] == [{"text": TEXT, "label": "x"}]


def test_label_studio_without_what_nobody_marked(tmp_path: Path) -> None:
    task = RECORDS["Label Studio"][1]
    others = [
        {"data": {"text": "x"}, "annotations": []},
        {"data": {"text": "y"}, "annotations": [{"was_cancelled": True}]},
    ]
    assert len(read(tmp_path / "x.json", json.dumps([task, *others, task]))[0]) == 2
    choice = {"data": {"text": "x"}, "annotations": [{"result": [{"type": "choices", "value": {"choices": ["a"]}}]}]}
    assert "spans" not in read(tmp_path / "x.json", json.dumps([choice] * 2))[0][0]


@pytest.mark.parametrize(
    ("place", "fault"),
    [
        ((0, 10, "PER"), "the span 'Angela Mer' cuts a word"),
        ((0, 99, "PER"), "is not within the text"),
        ((6, 7, "PER"), "is not within the text"),
        ((5, 5, "PER"), "is not within the text"),
    ],
)
def test_spans_that_do_not_fit(tmp_path: Path, place: tuple[int, int, str], fault: str) -> None:
    records = [{"text": TEXT, "label": [list(p)]} for p in [PLACES[0]] * 9 + [place]]
    rows, said = read(tmp_path / "x.json", json.dumps(records))
    assert len(rows) == 9
    assert f"1 of 10 rows of {tmp_path / 'x.json'} cannot be used and is left out: row 10: " in said[0]
    assert fault in said[0]
    assert "--strict" in refusal(tmp_path / "x.json", json.dumps(records), strict=True)
    assert "too many" in refusal(tmp_path / "x.json", json.dumps(records[-2:]))


def test_overlaps(tmp_path: Path) -> None:
    records = [{"text": TEXT, "label": [list(PLACES[0])]}] * 9 + [{"text": TEXT, "label": [[0, 13, "A"], [7, 13, "B"]]}]
    assert "the span 'Merkel' overlaps another" in read(tmp_path / "x.json", json.dumps(records))[1][0]


def test_a_blank_beside_a_span_and_rows_without_any(tmp_path: Path) -> None:
    rows, _ = read(
        tmp_path / "x.json", json.dumps([{"text": TEXT, "label": [[0, 14, "PER"]]}, {"text": "None.", "label": []}])
    )
    assert rows[0]["label"][:3] == ["B-PER", "I-PER", "O"]
    assert rows[1] == {"text": ["None", "."], "label": ["O", "O"]}


def test_scripts_without_blanks(tmp_path: Path) -> None:
    rows, _ = read(tmp_path / "x.json", json.dumps([{"text": "张三住在北京。", "label": [[0, 2, "PER"]]}] * 2))
    assert rows[0]["label"] == ["B-PER", "I-PER", "O", "O", "O", "O", "O"]
    rows, _ = read(tmp_path / "x.json", json.dumps([{"text": "हिन्दी भाषा", "label": [[0, 6, "L"]]}] * 2))
    assert rows[0] == {"text": ["हिन्दी", "भाषा"], "label": ["B-L", "O"]}


def test_spans_beside_classes_are_notes(tmp_path: Path) -> None:
    record = {"text": TEXT, "label": "good", "spans": [{"start": 0, "end": 13, "label": "PER"}]}
    assert read(tmp_path / "x.json", json.dumps([record] * 2))[0] == [record] * 2
