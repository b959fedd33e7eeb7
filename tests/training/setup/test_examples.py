"""The examples of a run: which rows are sampled, and the lines about them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from command_line import invoke, write_reviews
from tiny_job import bert, config, write_tags
from transformers import BertForSequenceClassification, BertForTokenClassification

from capaft.support.errors import UsageError
from capaft.training.setup.job import Job
from capaft.training.setup.prepare import prepare_job

Row = dict[str, Any]


QUICK = ("--max-steps", "2", "--batch-size", "8", "--k", "16", "--rank", "2", "--max-length", "16")


def write(path: Path, rows: list[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_scarce_classes_are_named(tmp_path: Path) -> None:
    data = write_reviews(tmp_path / "x.csv")
    with data.open("a") as stream:
        stream.writelines(f"Nothing like number {number}.,rare{number}\n" for number in range(12))
    done = invoke("train", "--data", data, "--shots", "3", "--dry-run", *QUICK)
    assert done.code == 0, done.err
    (line,) = (line for line in done.err.splitlines() if "some classes have fewer" in line)
    assert re.fullmatch(
        r"data   some classes have fewer than 3 training rows: rare0 \([01]\), .*, rare7 \([01]\) and 2 more", line
    )


def test_answers_that_are_nowhere_are_counted(tmp_path: Path) -> None:
    answers = [{"text": ["ab"], "answer_start": [0]}, {"text": ["xy"], "answer_start": [0]}]
    rows = [{"question": "q", "context": "ab cd", "answers": answers[row == 5]} for row in range(20)]
    done = invoke("train", "--data", write(tmp_path / "x.jsonl", rows), "--dry-run", *QUICK)
    assert done.code == 0, done.err
    assert "1 of 18 training rows is left out, their answers are not in the context: row 6\n" in done.err


def test_examples_are_rows_also_where_each_is_several_pieces(tmp_path: Path) -> None:
    contexts = ["ab cd " * size for size in (1, 40)]
    rows = [
        {"question": "q", "context": contexts[row % 2], "answers": {"text": ["ab"], "answer_start": [0]}}
        for row in range(20)
    ]
    data = write(tmp_path / "x.jsonl", rows)
    done = invoke("train", "--data", data, "--dry-run", "--json", *QUICK, "--stride", "4")
    assert done.code == 0, done.err
    assert {key: json.loads(done.out)[key] for key in ("train_examples", "validation_examples")} == {
        "train_examples": 18,
        "validation_examples": 2,
    }
    (counts,) = re.findall(r"18 training and 2 validation examples, in (\d+) and (\d+) pieces\n", done.err)
    assert int(counts[0]) > 5 * 18


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bert(tmp_path_factory.mktemp("model"), BertForSequenceClassification)


def prepared(model: Path, data: Path, **settings: Any) -> tuple[Job, list[str]]:
    lines: list[str] = []
    return prepare_job(config(model, data, **settings), lines.append), lines


def test_samples_are_seeded_and_part_of_the_rows(small: Path, reviews: Path) -> None:
    whole, lines = prepared(small, reviews)
    assert f"data   {reviews}: 58 training and 6 validation examples" in lines
    limits = {"max_train_examples": 20, "max_eval_examples": 4}
    (first, lines), (again, _), (other, _) = (prepared(small, reviews, **limits, seed=seed) for seed in (0, 0, 1))
    assert f"data   {reviews}: 20 training and 4 validation examples" in lines
    assert first.train.inputs == again.train.inputs != other.train.inputs
    for sample, rows in ((first.train, whole.train), (first.validation, whole.validation)):
        assert all(tokens in rows.inputs["input_ids"] for tokens in sample.inputs["input_ids"])


def test_a_limit_above_the_rows_changes_nothing(small: Path, reviews: Path) -> None:
    whole, limited = (prepared(small, reviews, **limit)[0] for limit in ({}, {"max_train_examples": 1000}))
    assert limited.train.inputs == whole.train.inputs


def test_shots_are_taken_before_the_sample(small: Path, reviews: Path) -> None:
    job, lines = prepared(small, reviews, shots=5)
    assert sorted(job.train.references) == [0] * 5 + [1] * 5
    assert not [line for line in lines if "some classes have fewer" in line]
    assert prepared(small, reviews, shots=5, max_train_examples=3)[0].train.examples == 3


def test_shots_need_rows_of_one_class_each(tmp_path: Path) -> None:
    model = bert(tmp_path / "model", BertForTokenClassification)
    message = "^--shots cannot be used with this token-classification: .*; use --max-train-examples$"
    with pytest.raises(UsageError, match=message):
        prepared(model, write_tags(tmp_path / "tags.jsonl"), shots=5)


def test_cut_examples_are_counted(small: Path, reviews: Path) -> None:
    assert not [line for line in prepared(small, reviews)[1] if "too long" in line]
    _, lines = prepared(small, reviews, max_length=4)
    assert "       64 examples are too long and are cut (--max-length)" in lines
