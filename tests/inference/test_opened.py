"""A finished adapter in Python: its answers are those of the merged model, and of transformers' own pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
import torch
from datasets import Dataset, DatasetDict
from tiny_answers import logits_of
from transformers import pipeline

import capaft
from capaft.inference.opened import Opened
from capaft.support.errors import UsageError

TEXTS = ["A superb film, from beginning to end.", "What a tedious book!", "An album."]


@pytest.fixture(scope="module")
def opened(run: Path) -> Opened:
    return capaft.open(run)


def test_the_answers_are_those_of_the_merged_model(opened: Opened, run: Path) -> None:
    records = opened.predict(TEXTS)
    merged = capaft.open(str(run))
    capaft.merge(merged.model)
    for text, record in zip(TEXTS, records, strict=True):
        shares = torch.softmax(logits_of(merged, text), -1)
        assert record["label"] == opened.task.labels[int(shares.argmax())]
        assert record["probability"] == pytest.approx(float(shares.max()), abs=1e-5)


def test_a_pipeline_of_transformers_gives_the_same(opened: Opened) -> None:
    classify = pipeline("text-classification", model=opened.model, tokenizer=opened.processor)
    expected = [
        {"label": each["label"], "probability": pytest.approx(each["score"], abs=1e-5)} for each in classify(TEXTS)
    ]
    assert opened.predict(TEXTS) == expected


def test_inputs_of_every_form(opened: Opened) -> None:
    expected = opened.predict(TEXTS)
    assert opened.predict(TEXTS[0]) == expected[:1]
    assert opened.predict(iter(TEXTS)) == expected
    assert opened.predict([{"text": text} for text in TEXTS]) == expected
    assert opened.predict(Dataset.from_dict({"text": TEXTS})) == expected
    assert opened.predict(Dataset.from_dict({"story": TEXTS, "no": [1, 2, 3]}), text_column="story") == expected
    kept = opened.predict([{"text": TEXTS[0], "no": 7}], keep=["no"])
    assert kept == [{"no": 7, **expected[0]}]
    whole = opened.predict([{"text": TEXTS[0], "label": "bad"}], keep=None)
    assert whole == [{"text": TEXTS[0], "input_label": "bad", **expected[0]}]
    assert opened.predict([]) == []
    assert opened.predict(["A \ud83d film"]) == opened.predict(["A \ufffd film"])
    assert [record.get("error") for record in opened.predict([TEXTS[0], None, "", "  "])][1:] == [
        "there is nothing in column 'text'"
    ] * 3


def test_what_cannot_be_asked_is_one_line(opened: Opened, run: Path) -> None:
    with pytest.raises(capaft.UsageError, match="this adapter takes one input a row, and these rows have 2"):
        opened.predict([("a", "b")])
    with pytest.raises(capaft.UsageError, match="text_column tale: there is no such column"):
        opened.predict([{"text": "a"}], text_column="tale")
    with pytest.raises(capaft.UsageError, match="keep no: there is no such column; the columns are text"):
        opened.predict([{"text": "a"}], keep=["no"])
    with pytest.raises(capaft.UsageError, match="top must be at least 1, got 0"):
        opened.predict(["a"], top=0)
    with pytest.raises(capaft.UsageError, match=r"base_dtype must be one of float32, .*, got 'float31'"):
        capaft.open(run, base_dtype="float31")  # type: ignore[arg-type]


def test_a_base_of_fewer_bits(run: Path, opened: Opened) -> None:
    (record,) = capaft.open(run, base_dtype="bfloat16").predict(TEXTS[:1])
    assert record["probability"] == pytest.approx(opened.predict(TEXTS[:1])[0]["probability"], abs=0.02)


def test_tables_are_rows_and_none_are_none(opened: Opened) -> None:
    expected = opened.predict(TEXTS)
    frame = pd.DataFrame({"text": TEXTS, "no": [1, 2, 3]}, index=[7, 7, 7])
    assert opened.predict(frame) == expected
    assert opened.predict(frame, keep=["no"])[1] == {"no": 2, **expected[1]}
    assert opened.predict(pa.table({"text": TEXTS})) == expected
    for nothing in (frame[:0], pa.table({"text": TEXTS})[:0], Dataset.from_dict({"text": []})):
        assert opened.predict(nothing) == []
    with pytest.raises(UsageError, match="pass one split"):
        opened.predict(DatasetDict(test=Dataset.from_dict({"text": TEXTS})))


@pytest.mark.parametrize(
    "options", [{"top": 0}, {"top": "3"}, {"top": 1.5}, {"batch_size": 0}, {"batch_size": -3}, {"batch_size": True}]
)
def test_numbers_out_of_range_are_refused(opened: Opened, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="must be at least 1"):
        opened.predict(TEXTS, **options)


def test_a_name_in_place_of_a_list_is_refused(opened: Opened) -> None:
    with pytest.raises(UsageError, match="keep must be a list of names, got 'no'"):
        opened.predict([{"text": "a", "n": 1, "o": 2}], keep="no")


@pytest.mark.parametrize("option", ["trust_remote_code", "allow_base_mismatch", "resize_embeddings"])
def test_a_word_is_no_permission(run: Path, option: str) -> None:
    with pytest.raises(UsageError, match=f"{option} must be True or False, got 'no'"):
        capaft.open(run, **{option: "no"})
