"""Checks that a resumed run has the data, labels and base model that it began with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_job import bert, config
from transformers import BertForQuestionAnswering, BertForSequenceClassification

import capaft
from capaft.config.sources import dump_settings
from capaft.config.train_config import TrainConfig
from capaft.support.errors import UsageError
from capaft.training.early_stopping import Best
from capaft.training.record.resume import check_same_origin, check_same_scale, check_same_settings, origin_digests
from capaft.training.record.run_directory import RunDirectory
from capaft.training.setup.job import Job
from capaft.training.setup.prepare import prepare_job


def prepared(settings: TrainConfig) -> Job:
    return prepare_job(settings, lambda line: None)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, reviews: Path) -> TrainConfig:
    return config(bert(tmp_path_factory.mktemp("model"), BertForSequenceClassification), reviews)


def test_the_same_is_the_same(settings: TrainConfig) -> None:
    one, other = (origin_digests(prepared(settings)) for _ in range(2))
    assert one == other
    check_same_origin(one, other, "run", {})


def test_anything_else_is_named(settings: TrainConfig) -> None:
    before = origin_digests(prepared(settings))
    fewer, renamed, tokens, labels, weights = (prepared(settings) for _ in range(5))
    fewer = replace(fewer, train=fewer.validation)
    renamed = replace(renamed, task=replace(renamed.task, labels=("a", "b")))
    tokens.train.inputs["input_ids"][3][1] += 1
    labels.validation.references[0] = 1 - labels.validation.references[0]
    with torch.no_grad():
        for parameter in weights.base.model.parameters():
            parameter *= 1.5
    several = [
        ("training data", fewer),
        ("list of labels", renamed),
        ("training data", tokens),
        ("validation data", labels),
        ("base model", weights),
    ]
    for name, made in several:
        now = origin_digests(made)
        assert [part for part in before if before[part] != now[part]] == [name]
        with pytest.raises(UsageError, match=f"--resume: the {name} of runs/one has changed; restore it"):
            check_same_origin(before, now, "runs/one", {"capaft": capaft.__version__})


def test_another_version_may_be_the_cause() -> None:
    for made_with, version in (({"capaft": "0.0.7"}, "capaft 0.0.7"), ({}, "an earlier capaft")):
        with pytest.raises(UsageError, match=f"training data of one has changed, or {version} read it otherwise;"):
            check_same_origin({"training data": "a"}, {"training data": "b"}, "one", made_with)


def test_a_choice_that_an_earlier_version_did_not_record_is_no_change(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.config.write_text(dump_settings(TrainConfig(data="x.txt")), encoding="utf-8")
    settled = TrainConfig(data="x.txt", text_column="text")
    check_same_settings(run, settled)
    with pytest.raises(UsageError, match="was started with --text-column None, not text; drop --text-column"):
        check_same_settings(run, settled, {"text_column"})


def test_answers_with_their_windows(tmp_path: Path) -> None:
    rows = [
        {
            "id": str(n),
            "question": "what?",
            "context": f"it is {n} of {n}",
            "answers": {"text": [str(n)], "answer_start": [6]},
        }
        for n in range(10, 30)
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = config(bert(tmp_path / "model", BertForQuestionAnswering), file, max_length=32, stride=8)
    made = prepared(settings)
    before = origin_digests(made)
    assert before == origin_digests(prepared(settings))
    # The same inputs, with the answer in another place.
    for row in rows:
        row["answers"]["answer_start"] = [12]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert origin_digests(prepared(settings))["training data"] != before["training data"]


def test_a_run_scored_on_another_scale_does_not_go_on() -> None:
    check_same_scale(Best(8, 0.45, {"loss": 3.0, "bleu": 0.45, "chrf": 1.0}), "runs/one")
    check_same_scale(Best(8, 30.0, {"loss": 3.4, "perplexity": 30.0}), "runs/one")
    with pytest.raises(
        UsageError, match="--resume: runs/one has BLEU and chrF from 0 to 100, which are now from 0 to 1"
    ):
        check_same_scale(Best(8, 0.4, {"bleu": 0.4, "chrf": 12.0}), "runs/one")
