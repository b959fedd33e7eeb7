"""Recognition of texts and their labels among the columns of a split."""

from __future__ import annotations

from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from capaft.support.errors import UsageError
from capaft.tasks.base.columns import Columns
from capaft.tasks.labels.columns import recognise_labelled_texts

LONG = [f"a sentence of its own, number {i}" for i in range(8)]
WORDS = ["yes", "no"] * 4
INTEGERS = [0, 1] * 4


def table(**columns: list[Any]) -> Dataset:
    return Dataset.from_dict(columns)


def recognise(dataset: Dataset, **named: str | None) -> Columns:
    return recognise_labelled_texts(dataset, named)


def assert_says(error: pytest.ExceptionInfo[UsageError], *parts: str) -> None:
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
        ("question", "answer"),
        ("question", "context"),
        ("query", "document"),
        ("query", "text"),
        ("text", "response"),
        ("context", "response"),
        ("#1 String", "#2 String"),
    ],
)
def test_pair_by_name(first: str, second: str) -> None:
    dataset = table(idx=list(range(8)), **{second: LONG, first: LONG}, label=INTEGERS)
    assert recognise(dataset) == Columns(first, second, "label")
    assert recognise(dataset, pair=second) == Columns(first, second, "label")


@pytest.mark.parametrize(("first", "second"), [("question", "answer"), ("text", "response")])
def test_a_reply_of_few_words_is_the_label_where_nothing_else_is(first: str, second: str) -> None:
    assert recognise(table(**{first: LONG, second: WORDS})) == Columns(first, None, second)
    assert recognise(table(**{first: LONG, second: WORDS, "label": INTEGERS})) == Columns(first, second, "label")
    assert recognise(table(**{first: LONG, second: LONG, "how": WORDS})) == Columns(first, second, "how")


@pytest.mark.parametrize(
    "name", ["label", "labels", "Label", "class", "category", "target", "intent", "sentiment", "y", "score", "stars"]
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
    assert_says(error, "which column is the text", "'text' and 'sentence'", "--text-column", "label (int64)")
    with pytest.raises(UsageError) as error:
        recognise(table(text=LONG, intent=WORDS, topic=WORDS))
    assert_says(error, "which column is the label", "'intent' and 'topic'", "--label-column", "text (string)")


def test_several_labels_a_row() -> None:
    assert recognise(table(text=LONG, labels=[[0, 1]] * 8)) == Columns("text", None, "labels")
    assert recognise(table(text=LONG, labels=[{"a": 1}] * 8, b=INTEGERS)) == Columns("text", None, "b")


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
    assert_says(error, "cannot tell which column is the", *parts)


# As named


def test_given_columns() -> None:
    dataset = table(sentence1=LONG, sentence2=LONG, label=INTEGERS, stars=INTEGERS, idx=WORDS)
    assert recognise(dataset, text="sentence1") == Columns("sentence1", None, "label")
    assert recognise(dataset, text="sentence2", pair="sentence1") == Columns("sentence2", "sentence1", "label")
    assert recognise(dataset, label="stars") == Columns("sentence1", "sentence2", "stars")
    assert recognise(dataset, text="idx", label="label") == Columns("idx", None, "label")
    assert recognise(table(a=LONG, b=LONG, c=INTEGERS), pair="b") == Columns("a", "b", "c")


@pytest.mark.parametrize(
    ("named", "parts"),
    [
        (
            {"label": "lable"},
            ["--label-column lable", "no such column", "text (string), label", "did you mean label?"],
        ),
        ({"text": "nothing"}, ["--text-column nothing", "the columns are text (string), label (int64)"]),
        ({"pair": "txt"}, ["--pair-column txt", "did you mean text?"]),
        ({"text": "label"}, ["--text-column label", "does not hold text"]),
        ({"label": "box"}, ["--label-column box", "does not hold a label, labels or a number a row"]),
        ({"text": "text", "pair": "text"}, ["--pair-column text", "another role", "different"]),
        ({"text": "text", "label": "text"}, ["--label-column text", "another role", "different"]),
        ({"label": "label,lable"}, ["--label-column lable", "did you mean label?"]),
        ({"label": "label,tags"}, ["--label-column tags", "does not hold 0 or 1"]),
    ],
)
def test_given_columns_that_are_wrong(named: dict[str, str], parts: list[str]) -> None:
    with pytest.raises(UsageError) as error:
        recognise(table(text=LONG, label=INTEGERS, tags=[["a"]] * 8, box=[{"a": 1}] * 8), **named)
    assert_says(error, *parts)


def test_a_column_for_each_label_is_named() -> None:
    dataset = table(comment_text=LONG, rude=INTEGERS, loud=INTEGERS)
    assert recognise(dataset, label="rude, loud") == Columns("comment_text", None, None, ("rude", "loud"))
    assert recognise(table(text=LONG, **{"a,b": INTEGERS}), label="a,b") == Columns("text", None, "a,b")
