"""A finished adapter in Python: its answers are those of the merged model, and of transformers' own pipeline."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset, DatasetDict
from tiny_answers import logits_of
from tiny_job import fresh_accelerate
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
    table = pd.DataFrame({"text": TEXTS, "no": [1, 2, 3]}, index=[7, 8, 9])
    assert opened.predict(table) == opened.predict(pa.table({"text": TEXTS})) == expected
    assert opened.predict(table["text"]) == opened.predict(table["text"].to_numpy()) == expected
    assert opened.predict(Dataset.from_pandas(table).with_format("torch")) == expected
    assert [record["no"] for record in opened.predict(table, keep="no")] == [1, 2, 3]
    kept = opened.predict([{"text": TEXTS[0], "no": 7}], keep=["no"])
    assert kept == [{"no": 7, **expected[0]}]
    whole = opened.predict([{"text": TEXTS[0], "label": "bad"}], keep=None)
    assert whole == [{"text": TEXTS[0], "input_label": "bad", **expected[0]}]
    assert opened.predict([]) == opened.predict(table[:0]) == []
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
    with pytest.raises(capaft.UsageError, match="these are the splits train, test; pass the rows of one"):
        opened.predict(DatasetDict(train=Dataset.from_dict({"text": ["a"]}), test=Dataset.from_dict({"text": ["b"]})))
    for option, value in [("top", 0), ("top", True), ("batch_size", 0), ("batch_size", "3")]:
        with pytest.raises(capaft.UsageError, match=f"^{option} must be a whole number of at least 1, got {value!r}"):
            opened.predict(["a"], **{option: value})
    with pytest.raises(capaft.UsageError, match=r"base_dtype must be one of float32, .*, got 'float31'"):
        capaft.open(run, base_dtype="float31")  # type: ignore[arg-type]


def test_a_base_of_fewer_bits(run: Path, opened: Opened) -> None:
    (record,) = capaft.open(run, base_dtype="bfloat16").predict(TEXTS[:1])
    assert record["probability"] == pytest.approx(opened.predict(TEXTS[:1])[0]["probability"], abs=0.02)


def test_nothing_is_printed_or_left_behind(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fresh_accelerate()
    accelerator = Accelerator(mixed_precision="bf16", cpu=True)
    try:
        # A number for a text is cast.
        assert "label" in capaft.open(run).predict([{"text": 7}])[0]
        assert capfd.readouterr() == ("", "")
        assert accelerator.mixed_precision == "bf16"
    finally:
        fresh_accelerate()


def test_each_adapter_keeps_its_own_precision(run: Path) -> None:
    seen = []
    first = capaft.open(run, base_dtype="bfloat16")
    second = capaft.open(run)
    for opened in (first, second, first):
        handle = opened.model.get_submodule("classifier").register_forward_hook(
            lambda *_: seen.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None)
        )
        opened.predict(["a"])
        handle.remove()
    assert seen == [torch.bfloat16, None, torch.bfloat16]


@pytest.mark.parametrize("option", ["trust_remote_code", "allow_base_mismatch", "resize_embeddings"])
def test_a_word_is_no_permission(run: Path, option: str) -> None:
    with pytest.raises(UsageError, match=f"{option} must be True or False, got 'no'"):
        capaft.open(run, **{option: "no"})
