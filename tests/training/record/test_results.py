"""Results as `results.json`, and back."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from tiny_results import RESULTS

from capaft.config.train_config import TrainConfig
from capaft.model.origin import Origin
from capaft.support import strict_json
from capaft.support.errors import UsageError
from capaft.tasks.text_classification import TextClassification
from capaft.training.record.model_card import card_text
from capaft.training.record.results import Results, read_results, score_text
from capaft.training.setup.job import Job


def card(results: Results) -> str:
    """The card of a run with these results."""
    task = TextClassification(("no", "yes"))
    model = SimpleNamespace(config=None)
    job = SimpleNamespace(task=task, base=SimpleNamespace(base=Origin("tiny"), model=model))
    return card_text(results, cast(Job, job), TrainConfig())


def write(results: Results, path: Path) -> Path:
    path.write_text(strict_json.document(results.record(), indent=2) + "\n", encoding="utf-8")
    return path


def test_results_read_back_the_same(tmp_path: Path) -> None:
    assert read_results(write(RESULTS, tmp_path / "results.json")) == RESULTS


def test_undefined_scores_read_back_as_none(tmp_path: Path) -> None:
    undefined = replace(RESULTS, value=math.nan, baseline=math.nan, scores={"loss": 0.25, "accuracy": math.nan})
    expected = replace(RESULTS, value=None, baseline=None, scores={"loss": 0.25, "accuracy": None})
    path = write(undefined, tmp_path / "results.json")
    assert read_results(path) == expected
    assert read_results(write(expected, path)) == expected


def test_those_of_a_run(run: Path) -> None:
    results = read_results(run / "results.json")
    assert results.record() == json.loads((run / "results.json").read_text())


def test_results_of_an_earlier_version_lack_what_came_later(tmp_path: Path) -> None:
    later = {"score_names", "baseline_head", "interval", "interval_method", "method_settings", "training_settings"}
    values = {name: value for name, value in RESULTS.record().items() if name not in later | {"machine"}}
    path = tmp_path / "results.json"
    path.write_text(json.dumps(values))
    results = read_results(path)
    # All baselines were fitted.
    assert results == replace(RESULTS, baseline_head="fitted")
    assert "accuracy on validation | 0.8308 |" in card(results)


def test_the_card_has_settings_and_uncertainty() -> None:
    results = replace(
        RESULTS,
        interval=[0.43, 0.97],
        interval_method="binomial",
        baseline_head="fitted",
        method_settings={
            "rank": 8,
            "alpha": 16.0,
            "k": [128, 128],
            "rslora": False,
            "targets": {"modules": "qv"},
            "sites": 1,
        },
        training_settings={"lr": 0.007, "schedule": "linear", "micro_batch_size": None, "restarts": [8, 12]},
        machine={"device": "cpu", "capaft": "0.1.0"},
    )
    text = card(results)
    assert "| accuracy on validation | 0.8308 (95 % interval 0.4300 to 0.9700, binomial) |" in text
    assert "| frozen base, fitted head | 0.8154 |" in text
    assert "| method's settings | rank 8, alpha 16, k 128,128 |" in text
    assert "| adapted layers | modules qv: 1 site |" in text
    anew = "warm-up and schedule started anew at step 8, 12"
    assert f"| settings of training | lr 0.007, schedule linear; {anew} |" in text
    assert "| made with | device cpu, capaft 0.1.0 |" in text


def test_a_newer_file_may_have_more_keys(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps(RESULTS.record() | {"mood": "good"}))
    assert read_results(path) == RESULTS


@pytest.mark.parametrize("content", ["", '{"output": "runs/o', "{}", "[1, 2]", "3", '"results"', "\x00", b"\xff\xfe"])
def test_a_cut_or_foreign_file_is_one_line(content: str | bytes, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UsageError) as caught:
        read_results(path)
    assert str(caught.value) == f"{path} is damaged; remove it and repeat the command with --resume"


def test_a_file_without_one_of_the_results_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    values = RESULTS.record()
    del values["seed"]
    path.write_text(json.dumps(values))
    with pytest.raises(UsageError, match="is damaged"):
        read_results(path)


@pytest.mark.parametrize(("score", "text"), [(0.5, "0.5000"), (None, "undefined"), (math.nan, "undefined")])
def test_a_score_in_words(score: float | None, text: str) -> None:
    assert score_text(score) == text


@pytest.mark.parametrize(
    "change",
    [
        *({"metric": value} for value in ([], None, {})),
        *({"steps": value} for value in (1.5, True, "3")),
        {"scores": []},
        {"scores": {"loss": "x"}},
        {"labels": "x"},
        {"next": [3]},
        {"value": "high"},
        {"seconds": None},
    ],
)
def test_values_of_another_type_are_damage(change: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps(RESULTS.record() | change))
    with pytest.raises(UsageError, match="is damaged"):
        read_results(path)


@pytest.mark.parametrize("content", ["", "null", "[" * 100_000, "{}", "\ufeff{}"])
def test_a_file_that_is_no_results(content: str, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(UsageError, match="is damaged"):
        read_results(path)
