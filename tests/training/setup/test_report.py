"""The lines that describe a job: its sizes, its rate, and settings that have no effect."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from command_line import invoke
from tiny_job import bert, config
from transformers import BertForMaskedLM, BertForSequenceClassification

from capaft.training.setup.prepare import prepare_job
from capaft.training.setup.report import describe_job


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bert(tmp_path_factory.mktemp("model"), BertForSequenceClassification)


def described(model: Path, data: Path, **changes: Any) -> list[str]:
    settings = config(model, data, **changes)
    lines: list[str] = []
    describe_job(prepare_job(settings, lambda line: None), settings, lines.append)
    return lines


def warnings(lines: list[str]) -> list[str]:
    return [line.removeprefix("       warning: ") for line in lines if "warning" in line]


def test_a_job_in_lines(small: Path, reviews: Path) -> None:
    model, method, head, rate = described(small, reviews, method="lora", lr=1e-3, head_lr=2e-3, k=None)
    assert re.fullmatch(r"model  .*: [\d,]+ weights, frozen", model)
    # Query and value of two layers of width 32, at rank 2.
    assert method.startswith("method lora (")
    assert method.endswith(") on 4 sites: 512 trainable parameters")
    assert head == "       and 66 of the head"
    assert rate == "rate   0.001 at its peak, 0.002 for the head; 16 steps of 8 examples"


def test_a_method_without_options_has_no_brackets_and_one_of_a_thing_is_singular(small: Path, reviews: Path) -> None:
    changes = {"k": None, "rank": None, "target_modules": "layer.0.attention.self.value", "batch_size": 1}
    _, method, _, rate = described(small, reviews, method="ia3", max_steps=1, epochs=None, **changes)
    assert method == "method ia3 on 1 site: 32 trainable parameters"
    assert rate.endswith("; 1 step of 1 example")


def test_full_training_has_no_sites(small: Path, reviews: Path) -> None:
    model, method, rate = described(small, reviews, method="full", k=None, rank=None, lr=1e-3)
    assert model.endswith(" weights, all trained")
    assert method == "method full"
    assert rate == "rate   0.001 at its peak; 16 steps of 8 examples"


def test_more_coefficients_than_a_factor_has_entries(small: Path, reviews: Path) -> None:
    (warning,) = warnings(described(small, reviews, k=(65,)))
    assert warning == "k 65 is more than the 64 entries of a factor; lora is smaller"
    assert warnings(described(small, reviews, k=(64,))) == []
    assert warnings(described(small, reviews, k=(65,), scope="model")) == []


def test_the_head_of_a_checkpoint_is_no_new_one(reviews: Path, tmp_path: Path) -> None:
    model = bert(tmp_path / "model", BertForMaskedLM)
    data = tmp_path / "lines.txt"
    data.write_text("A film of great charm.\n" * 40)
    lines = described(model, data, task="masked-lm", head="frozen")
    assert warnings(lines) == ["--head frozen has no effect: masked-lm makes no new head"]


def test_an_option_that_the_method_has_no_use_for_is_told(reviews: Path) -> None:
    done = invoke(
        "train", "--data", reviews, "--method", "lora", "--k", "64", "--copies", "3", "--rank", "2", "--dry-run"
    )
    assert done.code == 0
    warned = [line.split()[1:3] for line in done.err.splitlines() if "has no effect with lora" in line]
    assert warned == [["--k", "has"], ["--copies", "has"]]


def test_an_option_that_the_task_has_no_use_for_is_told(reviews: Path) -> None:
    void = ("--num-beams", "4", "--stride", "64", "--no-augment", "--separator", " ")
    err = invoke("train", "--data", reviews, "--dry-run", *void, "--problem", "single").err
    warned = re.findall(r"warning: (--[a-z-]+) has no effect with text-classification and is ignored", err)
    assert warned == ["--stride", "--separator", "--num-beams", "--augment"]
    data = reviews.parent / "words.jsonl"
    data.write_text('{"tokens": ["a", "b"], "tags": ["x", "y"]}\n' * 4)
    err = invoke("train", "--data", data, "--dry-run", "--baseline").err
    assert "warning: --baseline has no effect: no linear head can be fitted for token-classification" in err
