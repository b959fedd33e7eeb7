"""Results as `results.json`, and back."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_results import RESULTS

from capaft.support import strict_json
from capaft.support.errors import UsageError
from capaft.training.record.results import Results, read_results, score_text


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
