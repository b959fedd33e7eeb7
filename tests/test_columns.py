"""Columns are found by name and by type; what cannot be told, or cannot be a class, is said."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from capaft.columns import Columns, encode_labels, labels, recognise, texts
from capaft.errors import UsageError

LONG = [f"a sentence of its own, number {i}" for i in range(8)]
WORDS = ["yes", "no"] * 4
INTEGERS = [0, 1] * 4


def table(**columns: list[Any]) -> Dataset:
    return Dataset.from_dict(columns)


def said(error: pytest.ExceptionInfo[UsageError], *parts: str) -> None:
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


# By name


@pytest.mark.parametrize("name", ["sentence", "text", "Text", "review", "content", "tweet", "Comment Text"])
def test_text_by_name(name: str) -> None:
    assert recognise(table(other=LONG, label=INTEGERS, **{name: LONG})) == Columns(name, None, "label")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("sentence1", "sentence2"),
        ("Sentence_1", "Sentence_2"),
        ("question1", "question2"),
        ("question", "sentence"),
        ("premise", "hypothesis"),
        ("text1", "text2"),
        ("text_a", "text_b"),
        ("query", "passage"),
        ("#1 String", "#2 String"),
    ],
)
def test_pair_by_name(first: str, second: str) -> None:
    dataset = table(idx=list(range(8)), **{second: LONG, first: LONG}, label=INTEGERS)
    assert recognise(dataset) == Columns(first, second, "label")
    assert recognise(dataset, pair=second) == Columns(first, second, "label")


@pytest.mark.parametrize(
    "name", ["label", "labels", "Label", "class", "category", "target", "intent", "sentiment", "y"]
)
@pytest.mark.parametrize("values", [INTEGERS, WORDS, [True, False] * 4, [0.0, 1.0] * 4])
def test_label_by_name(name: str, values: list[Any]) -> None:
    assert recognise(table(text=LONG, size=INTEGERS, source=WORDS, **{name: values})).label == name


def test_names_have_an_order() -> None:
    dataset = table(title=LONG, content=LONG, topic=WORDS, label=INTEGERS)
    assert recognise(dataset) == Columns("content", None, "label")


def test_two_names_of_one_rank_are_ambiguous() -> None:
    with pytest.raises(UsageError) as error:
        recognise(table(text=LONG, sentence=LONG, label=INTEGERS))
    said(error, "which column is the text", "'text' and 'sentence'", "--text-column", "label (int64)")
    with pytest.raises(UsageError) as error:
        recognise(table(text=LONG, intent=WORDS, topic=WORDS))
    said(error, "which column is the label", "'intent' and 'topic'", "--label-column", "text (string)")


def test_several_labels_a_row() -> None:
    with pytest.raises(UsageError) as error:
        recognise(table(text=LONG, labels=[[0, 1]] * 8))
    said(error, "'labels' does not hold one value a row", "--label-column")


# By type


@pytest.mark.parametrize("values", [INTEGERS, WORDS, [True, False] * 4, [0.0, 1.0] * 4])
def test_by_type(values: list[Any]) -> None:
    assert recognise(table(what=LONG, how=values)) == Columns("what", None, "how")


@pytest.mark.parametrize("name", ["idx", "id", "ID", "guid", "index", "Unnamed: 0", "tweet_id", "pairID", "#1 ID"])
def test_id_is_neither(name: str) -> None:
    assert recognise(table(**{name: LONG}, a=LONG, b=INTEGERS)) == Columns("a", None, "b")
    assert recognise(table(**{name: INTEGERS}, a=LONG, b=INTEGERS)) == Columns("a", None, "b")


def test_words_that_only_end_like_ids_are_columns() -> None:
    assert recognise(table(paid=LONG, valid=INTEGERS)) == Columns("paid", None, "valid")


def test_the_only_text_may_repeat_itself() -> None:
    assert recognise(table(a=WORDS, label=INTEGERS)) == Columns("a", None, "label")
    assert recognise(table(a=WORDS, b=INTEGERS)) == Columns("a", None, "b")


def test_class_label_by_type() -> None:
    features = Features({"a": Value("large_string"), "b": ClassLabel(names=["no", "yes"])})
    assert recognise(Dataset.from_dict({"a": LONG, "b": INTEGERS}, features=features)) == Columns("a", None, "b")


@pytest.mark.parametrize(
    ("columns", "parts"),
    [
        ({"a": LONG, "b": LONG, "label": INTEGERS}, ["text", "several columns", "a (string), b (string)"]),
        ({"a": INTEGERS, "label": INTEGERS}, ["text", "there is no column of text", "a (int64)"]),
        ({"a": LONG, "b": INTEGERS, "c": INTEGERS}, ["label", "several columns", "b (int64), c (int64)"]),
        ({"a": LONG, "b": INTEGERS, "c": WORDS}, ["label", "several columns", "--label-column"]),
        ({"text": LONG}, ["label", "no column looks like one", "--label-column"]),
        ({"text": LONG, "a": [[1]] * 8}, ["label", "no column looks like one", "a (nested)"]),
        ({"a": [{"b": 1}] * 8, "label": INTEGERS}, ["text", "a (nested)"]),
    ],
)
def test_what_cannot_be_told(columns: dict[str, list[Any]], parts: list[str]) -> None:
    with pytest.raises(UsageError) as error:
        recognise(table(**columns))
    said(error, "cannot tell which column is the", *parts)


# As given


def test_given_columns() -> None:
    dataset = table(sentence1=LONG, sentence2=LONG, label=INTEGERS, stars=INTEGERS, idx=WORDS)
    assert recognise(dataset, text="sentence1") == Columns("sentence1", None, "label")
    assert recognise(dataset, text="sentence2", pair="sentence1") == Columns("sentence2", "sentence1", "label")
    assert recognise(dataset, label="stars") == Columns("sentence1", "sentence2", "stars")
    assert recognise(dataset, text="idx", label="label") == Columns("idx", None, "label")
    assert recognise(table(a=LONG, b=LONG, c=INTEGERS), pair="b") == Columns("a", "b", "c")


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        (
            {"label": "lable"},
            ["--label-column lable", "no such column (did you mean label?)", "text (string), label"],
        ),
        ({"text": "nothing"}, ["--text-column nothing", "the columns are text (string), label (int64)"]),
        ({"pair": "txt"}, ["--pair-column txt", "did you mean text?"]),
        ({"text": "label"}, ["--text-column label", "does not hold text"]),
        ({"label": "tags"}, ["--label-column tags", "does not hold one value a row"]),
        ({"text": "text", "pair": "text"}, ["--text-column text, --pair-column text", "different"]),
        ({"text": "text", "label": "text"}, ["--text-column text, --label-column text", "different"]),
    ],
)
def test_given_columns_that_are_wrong(given: dict[str, str], parts: list[str]) -> None:
    with pytest.raises(UsageError) as error:
        recognise(table(text=LONG, label=INTEGERS, tags=[["a"]] * 8), **given)
    said(error, *parts)


def test_describe() -> None:
    assert Columns("a", None, "b").describe() == "text from 'a', label from 'b'"
    assert Columns("a", "b", "c").describe() == "text from 'a' and 'b', label from 'c'"


# Classes

COLUMNS = Columns("text", None, "label")


@pytest.mark.parametrize(
    ("values", "names", "indices"),
    [
        ([10, 9, -1, 9], ["-1", "9", "10"], [2, 1, 0, 1]),
        ([True, False, False], ["False", "True"], [1, 0, 0]),
        (["b", "a", "B", "a"], ["B", "a", "b"], [2, 1, 0, 1]),
        (["10", "9", "10"], ["10", "9"], [0, 1, 0]),
        ([1.0, 0.0, 10.0, 1.0], ["0", "1", "10"], [1, 0, 2, 1]),
    ],
)
def test_classes(values: list[Any], names: list[str], indices: list[int]) -> None:
    dataset = table(text=LONG[: len(values)], label=values)
    assert labels(dataset, COLUMNS) == names
    assert encode_labels(dataset, COLUMNS, names) == indices


def class_label(names: list[str], values: Sequence[int | None]) -> Dataset:
    features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
    return Dataset.from_dict({"text": LONG[: len(values)], "label": list(values)}, features=features)


def test_class_label_keeps_its_order() -> None:
    dataset = class_label(["pos", "neg", "neutral"], [0, 1, 1])
    assert labels(dataset, COLUMNS) == ["pos", "neg", "neutral"]
    assert encode_labels(dataset, COLUMNS, ["pos", "neg", "neutral"]) == [0, 1, 1]


def test_classes_are_matched_by_name() -> None:
    names = ["neg", "pos"]
    assert encode_labels(class_label(["pos", "neg"], [0, 1, 1]), COLUMNS, names) == [1, 0, 0]
    assert encode_labels(table(text=LONG[:2], label=["pos", "neg"]), COLUMNS, names) == [1, 0]
    assert encode_labels(table(text=LONG[:2], label=[1, 0]), COLUMNS, names) == [1, 0]
    assert encode_labels(table(text=LONG[:2], label=["9", "7"]), COLUMNS, ["7", "9"]) == [1, 0]
    assert encode_labels(table(text=LONG[:2], label=[9, 7]), COLUMNS, ["7", "9"]) == [1, 0]


def test_rows_that_were_selected() -> None:
    dataset = table(text=LONG, label=["a", "b", "c", "a", "b", "c", "a", "b"]).select([5, 2, 1])
    assert labels(dataset, COLUMNS) == ["b", "c"]
    assert encode_labels(dataset, COLUMNS, ["b", "c"]) == [1, 1, 0]
    assert texts(dataset, COLUMNS) == ([LONG[5], LONG[2], LONG[1]], None)


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ([0, None, 1], ["row 2 ('a sentence of its own, number 1')", "no label in column 'label'"]),
        (["a", "", "b"], ["row 2", "no label"]),
        ([0.0, float("nan"), 1.0], ["row 2", "no label"]),
        ([5.0, 3.8, 1.0], ["row 2", "3.8", "regression", "--label-column"]),
        ([-1, -1, -1], ["every label in column 'label' is -1", "withheld"]),
        ([1, 1, 1], ["every label in column 'label' is '1'", "two classes"]),
        (
            [1, 2, 3],
            ["3 different values in 3 rows", "not look like a label", "--label-column", "text (string)"],
        ),
        (LONG[:3], ["3 different values in 3 rows"]),
    ],
)
def test_labels_that_are_wrong(values: list[Any], parts: list[str]) -> None:
    with pytest.raises(UsageError) as error:
        labels(table(text=LONG[:3], label=values), COLUMNS)
    said(error, *parts)


def test_class_labels_that_are_wrong() -> None:
    for values, part in (
        ([0, -1, 1], "row 2"),
        ([-1, -1, -1], "withheld"),
        ([1, 1, 1], "is 'b'"),
        ([0, None], "row 2"),
    ):
        with pytest.raises(UsageError, match=re.escape(part)):
            labels(class_label(["a", "b"], values), COLUMNS)


def test_too_many_classes() -> None:
    with pytest.raises(UsageError, match="1001 different values in 2002 rows"):
        labels(table(text=["a"] * 2002, label=[*range(1001), *range(1001)]), COLUMNS)


def test_label_that_training_lacks() -> None:
    with pytest.raises(UsageError) as error:
        encode_labels(table(text=LONG[:3], label=["yes", "no", "yess"]), COLUMNS, ["no", "yes"])
    said(error, "row 3 ('a sentence of its own, number 2')", "no label 'yess'", "did you mean yes?", "no, yes")
    with pytest.raises(UsageError, match=r"row 2 .*no label '2'.* are neg, pos"):
        encode_labels(table(text=LONG[:2], label=[0, 2]), COLUMNS, ["neg", "pos"])
    with pytest.raises(UsageError, match=r"its labels are 0, 1, .*9, \.\.\.$"):
        encode_labels(table(text=["x"], label=["?"]), COLUMNS, [str(i) for i in range(20)])


def test_withheld_and_missing_labels_cannot_be_encoded() -> None:
    with pytest.raises(UsageError, match="withheld"):
        encode_labels(table(text=LONG[:2], label=[-1, -1]), COLUMNS, ["0", "1"])
    with pytest.raises(UsageError, match=r"row 2 .*no label"):
        encode_labels(table(text=LONG[:2], label=[1, None]), COLUMNS, ["0", "1"])


# Texts


def test_texts() -> None:
    dataset = table(text=["a", ""], other=["c", "d"], label=[0, 1])
    assert texts(dataset, COLUMNS) == (["a", ""], None)
    assert texts(dataset, Columns("text", "other", "label")) == (["a", ""], ["c", "d"])


def test_missing_text() -> None:
    dataset = table(text=["a", "b", None], other=["c", None, "d"], label=[0, 1, 0])
    with pytest.raises(UsageError, match="row 3: no text in column 'text'"):
        texts(dataset, COLUMNS)
    with pytest.raises(UsageError, match="row 2: no text in column 'other'"):
        texts(dataset.select([0, 1]), Columns("text", "other", "label"))
