"""A column is found by the user's choice or a usual name; an ambiguous one is asked for."""

from __future__ import annotations

from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Image, List, Value

from capaft.support.errors import UsageError
from capaft.tasks.base.columns import (
    Columns,
    cell_kind,
    describe_row,
    filled_rows,
    find_column,
    is_id,
    is_text,
    plain_name,
    row_texts,
    value_counts,
)

NAMES = (("label", "labels"), ("class",))


def table(**columns: list[Any]) -> Dataset:
    return Dataset.from_dict(columns)


def find(column: str | None = None, taken: tuple[str, ...] = (), **columns: list[Any]) -> str | None:
    return find_column(table(**columns), "text", column, NAMES, is_text, "text", taken)


def test_by_name() -> None:
    assert find(a=["x"], Labels=["x"]) == "Labels"
    assert find(a=["x"], Class=["x"], label=["x"]) == "label"
    assert find(a=["x"]) is None


def test_what_does_not_fit_or_is_taken_is_not_found() -> None:
    assert find(label=[1], labels=["x"]) == "labels"
    assert find(label=["x"], labels=["x"], taken=("label",)) == "labels"
    assert find(label=[1]) is None


def test_two_names_of_one_rank_are_ambiguous() -> None:
    with pytest.raises(UsageError, match=r"the text \('label' and 'labels' both could be\); choose with --text-column"):
        find(label=["x"], labels=["x"])


def test_as_given() -> None:
    assert find("a", a=["x"], label=["x"]) == "a"


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (
            "lable",
            r"^--text-column lable: there is no such column; .* label \(string\), n \(int64\), .*; did you mean label",
        ),
        ("n", r"^--text-column n: this column does not hold text; the columns are"),
        ("used", r"^--text-column used: this column has another role; name a different column with each option$"),
    ],
)
def test_given_columns_that_are_wrong(column: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        find(column, ("used",), label=["x"], n=[1], used=["x"])


@pytest.mark.parametrize(
    ("feature", "expected"),
    [
        (Value("string"), "text"),
        (Value("large_string"), "text"),
        (ClassLabel(names=["a"]), "class"),
        (Value("uint8"), "integer"),
        (Value("bool"), "bool"),
        (Value("float16"), "float"),
        (List(Value("int8")), "list"),
        (List(ClassLabel(names=["a"]), length=3), "list"),
        (Value("timestamp[s]"), "other"),
        ({"a": Value("string")}, "other"),
        (Image(), "other"),
    ],
)
def test_kind(feature: Any, expected: str) -> None:
    assert cell_kind(feature) == expected


def test_ids() -> None:
    assert all(map(is_id, ["idx", "id", "ID", "guid", "Unnamed: 0", "tweet_id", "pairID", "__index_level_0__"]))
    assert not any(map(is_id, ["paid", "valid", "index of refraction", "ideas"]))


def test_plain() -> None:
    assert plain_name("#1 String_a") == "1stringa"


def test_describe() -> None:
    assert Columns("a", None, "b").describe() == "input from 'a', label from 'b'"
    assert Columns("a", "b", "c").describe() == "input from 'a' and 'b', label from 'c'"
    assert Columns("a", None, None, ("b", "c")).describe() == "input from 'a' with the choices 'b', 'c'"


def test_texts() -> None:
    dataset = table(text=["a", ""], other=["c", "d"], label=[0, 1])
    assert row_texts(dataset, Columns("text")) == (["a", ""], None)
    assert row_texts(dataset, Columns("text", "other", "label")) == (["a", ""], ["c", "d"])
    assert row_texts(dataset.select([1]), Columns("text")) == ([""], None)


def test_missing_text() -> None:
    dataset = table(text=["a", "b", None], other=["c", None, "d"])
    with pytest.raises(UsageError, match="row 3: no text in column 'text'"):
        row_texts(dataset, Columns("text"))
    with pytest.raises(UsageError, match="row 2: no text in column 'other'"):
        row_texts(dataset.select([0, 1]), Columns("text", "other"))


def test_place() -> None:
    dataset = table(text=["short", "a  sentence\nthat goes on for more than forty characters"], image=[1, 2])
    assert describe_row(dataset, Columns("text"), 0) == "row 1 ('short')"
    assert describe_row(dataset, Columns("text"), 1) == "row 2 ('a sentence that goes on for more than...')"
    assert describe_row(dataset, Columns("image"), 1) == "row 2"


def test_which_rows_are_filled() -> None:
    assert filled_rows(table(a=["x", "", None], b=[1, None, -1]), "a").tolist() == [True, True, False]
    assert filled_rows(table(a=["x", "", None], b=[1, None, -1]), "a", None, "b").tolist() == [True, False, False]
    assert filled_rows(table(a=[0.5, float("nan"), float("inf"), None]), "a").tolist() == [True, False, True, False]
    assert filled_rows(table(a=[["x"], [], None, [None], [None, "y"]]), "a").tolist() == [
        True,
        False,
        False,
        False,
        True,
    ]
    classes = table(a=[0, 1, -1, None]).cast_column("a", ClassLabel(names=["x", "y"]))
    assert filled_rows(classes, "a").tolist() == [True, True, False, False]
    assert filled_rows(table(a=[{"x": "b", "y": None}, {"x": None, "y": "c"}]), "x").tolist() == [True, False]
    files = table(a=["0.png", None]).cast_column("a", Image(decode=False))
    assert filled_rows(files, "a").tolist() == [True, False]


def test_which_rows_are_filled_is_told_for_any_selection() -> None:
    rows = table(a=[["x", None][row % 3 == 0] for row in range(25_000)])
    for selection in (rows, rows.select(range(24_999, 0, -7)), rows.select([])):
        assert filled_rows(selection, "a").tolist() == [value is not None for value in selection["a"]]


def test_counts_of_values() -> None:
    rows = table(a=["x", None, "y", "x", ""] * 5000).select(range(24_999))
    assert value_counts(rows, "a") == {"x": 10_000, "y": 5000, "": 4999}
    assert value_counts(rows.select([]), "a") == {}
