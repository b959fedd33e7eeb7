"""SQuAD's nested JSON becomes one row a question."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from capaft.data.tables import read_rows
from capaft.support.errors import UsageError


def answer(text: str, start: int) -> dict[str, Any]:
    return {"text": text, "answer_start": start}


DOCUMENT: dict[str, Any] = {
    "version": "v2.0",
    "data": [
        {
            "title": "Cats",
            "paragraphs": [
                {
                    "context": "A cat sat.",
                    "qas": [
                        {"id": "1", "question": "Who sat?", "answers": [answer("A cat", 0), answer("cat", 2)]},
                        {
                            "id": "2",
                            "question": "Who ran?",
                            "answers": [],
                            "plausible_answers": [answer("cat", 2)],
                            "is_impossible": True,
                        },
                    ],
                }
            ],
        },
        {"title": "Dogs", "paragraphs": [{"context": "A dog.", "qas": []}]},
        {
            "paragraphs": [
                {
                    "context": "Hm.",
                    "qas": [{"id": 3, "question": "What?", "is_impossible": True, "answers": [answer("Hm", 0)]}],
                }
            ]
        },
    ],
}
ROWS = [
    {
        "id": "1",
        "title": "Cats",
        "context": "A cat sat.",
        "question": "Who sat?",
        "answers": {"text": ["A cat", "cat"], "answer_start": [0, 2]},
    },
    {
        "id": "2",
        "title": "Cats",
        "context": "A cat sat.",
        "question": "Who ran?",
        "answers": {"text": [], "answer_start": []},
    },
    {"id": "3", "title": "", "context": "Hm.", "question": "What?", "answers": {"text": [], "answer_start": []}},
]


@pytest.mark.parametrize("indent", [None, 2])
def test_rows(tmp_path: Path, indent: int | None) -> None:
    path = tmp_path / "train-v2.0.json"
    path.write_text(json.dumps(DOCUMENT, indent=indent))
    assert list(read_rows(path)) == ROWS


def test_answers_that_are_withheld(tmp_path: Path) -> None:
    document = copy.deepcopy(DOCUMENT)
    del document["data"][2]
    for question in document["data"][0]["paragraphs"][0]["qas"]:
        del question["answers"]
        question.pop("is_impossible", None)
    path = tmp_path / "test.json"
    path.write_text(json.dumps(document))
    assert read_rows(path).column_names == ["id", "title", "context", "question"]


def drop(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda paragraph: paragraph["qas"][0].pop(name)


def change(name: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda paragraph: paragraph["qas"][0].update({name: value})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop("id"), "article 1, paragraph 1, question 1 has no usable 'id'"),
        (drop("question"), "question 1 has no usable 'question'"),
        (change("question", 3), "question 1 has no usable 'question'"),
        (change("answers", "A cat"), "question 1 has no usable 'answers'"),
        (change("answers", [{"text": "A cat"}]), "question 1 has no usable 'answer_start'"),
        (change("answers", ["A cat"]), "question 1 has no usable 'text'"),
        (lambda paragraph: paragraph.pop("context"), "article 1, paragraph 1 has no usable 'context'"),
        (lambda paragraph: paragraph.update(qas={}), "article 1, paragraph 1 has no usable 'qas'"),
        (lambda paragraph: paragraph["qas"].insert(0, 3), "question 1 has no usable 'id'"),
    ],
)
def test_damaged(tmp_path: Path, damage: Callable[[dict[str, Any]], Any], message: str) -> None:
    document = copy.deepcopy(DOCUMENT)
    damage(document["data"][0]["paragraphs"][0])
    path = tmp_path / "x.json"
    path.write_text(json.dumps(document))
    with pytest.raises(UsageError, match=f"x.json: .*{message}") as caught:
        read_rows(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("articles", [[3, {"paragraphs": []}], [{"paragraphs": []}, {"title": "x"}]])
def test_damaged_articles(tmp_path: Path, articles: list[Any]) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"data": articles}))
    with pytest.raises(UsageError, match="has no usable 'paragraphs'"):
        read_rows(path)


def test_no_questions_and_truncated(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"data": [{"paragraphs": []}]}))
    with pytest.raises(UsageError, match="there are no rows"):
        read_rows(path)
    path.write_text(json.dumps(DOCUMENT)[:-5])
    with pytest.raises(UsageError, match="line 1 is not JSON"):
        read_rows(path)


def test_records_with_a_column_named_data_are_records(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"data": ["a"], "label": 0}\n{"data": ["b"], "label": 1}\n')
    assert read_rows(path)["data"][:] == [["a"], ["b"]]
    path.write_text('{"data": ["a"], "label": 0}\n')
    assert read_rows(path)["data"][:] == [["a"]]
