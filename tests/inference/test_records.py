"""What records hold of the input: values that JSON has, under names that no answer has."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from decimal import Decimal

import datasets
import pyarrow as pa

from capaft.inference.records import passed_names, passed_values


def test_no_column_hides_an_answer() -> None:
    names = ["label", "text", "input_label", "error"]
    shown = passed_names(names, None, ("label", "probability"))
    assert shown == {
        "label": "input_label",
        "text": "text",
        "input_label": "input_input_label",
        "error": "input_error",
    }
    assert passed_names(names, ["text", "text"], ("label",)) == {"text": "text"}
    assert passed_names(names, [], ("label",)) == {}


def test_values_of_every_type_are_values_of_json() -> None:
    table = pa.table(
        {
            "day": [date(2024, 5, 1)],
            "time": [datetime(2024, 5, 1, 12, tzinfo=UTC)],
            "price": [Decimal("1.50")],
            "tags": [["a", "b"]],
            "nested": [{"x": {"y": b"raw"}}],
            "picture": pa.array([{"bytes": b"png", "path": "a.png"}]),
            "nothing": pa.array([None], pa.string()),
        }
    )
    rows = datasets.Dataset(table).add_column("kind", [1]).cast_column("kind", datasets.ClassLabel(names=["no", "yes"]))
    (record,) = passed_values(rows, {name: name for name in rows.column_names})
    assert json.loads(json.dumps(record)) == {
        "day": "2024-05-01",
        "time": "2024-05-01T12:00:00+00:00",
        "price": "1.50",
        "tags": ["a", "b"],
        "nested": {"x": {"y": None}},
        "picture": "a.png",
        "nothing": None,
        "kind": "yes",
    }


def test_a_column_that_some_rows_lack_is_null_there() -> None:
    rows = datasets.Dataset.from_dict({"text": ["a", "b"]})
    assert passed_values(rows, {"text": "text", "id": "id"}) == [{"text": "a", "id": None}, {"text": "b", "id": None}]
    assert passed_values(rows, {}) == [{}, {}]
