"""Scoring a saved adapter: on which rows, by which columns, with which options of its task."""

from __future__ import annotations

import csv
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import GOOD, invoke
from tiny_data import ignore

from capaft import scoring
from capaft.errors import UsageError
from capaft.saved import Saved, open_run

score = partial(scoring.score, say=ignore)


@pytest.fixture(scope="module")
def saved(run: Path) -> Saved:
    return open_run(str(run))


def predicted(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def by_hand(records: list[dict[str, Any]]) -> dict[str, float]:
    """Accuracy, and F1 of the class "good", which is second in the alphabet."""
    pairs = [(each["predicted"], each["label"]) for each in records]
    hits = sum(pair == ("good", "good") for pair in pairs)
    misses = sum("good" in pair and pair[0] != pair[1] for pair in pairs)
    return {"accuracy": sum(a == b for a, b in pairs) / len(pairs), "f1": 2 * hits / max(2 * hits + misses, 1)}


def test_the_own_validation_split(saved: Saved, run: Path, tmp_path: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    found = score(saved, None, predictions=tmp_path / "p.jsonl")
    assert found["scores"] == results["scores"]
    assert (found["metric"], found["value"], found["examples"]) == ("accuracy", results["value"], 6)
    assert (tmp_path / "p.jsonl").read_bytes() == (run / "predictions.jsonl").read_bytes()
    expected = by_hand(predicted(tmp_path / "p.jsonl"))
    assert {name: found["scores"][name] for name in expected} == pytest.approx(expected)


def test_other_data_with_other_names(saved: Saved, tmp_path: Path) -> None:
    file = tmp_path / "other.csv"
    with file.open("w", newline="") as stream:
        rows = [(f"What a {word} story!", "no", "good") for word in GOOD] + [("So long.", "no", "bad")]
        csv.writer(stream).writerows([("story", "spoiler", "verdict"), *rows])
    chosen = {"text": "story", "label": "verdict", "predictions": tmp_path / "p.jsonl"}
    found = score(saved, str(file), **chosen, metric="f1")  # type: ignore[arg-type]
    expected = by_hand(predicted(tmp_path / "p.jsonl"))
    assert found["examples"] == len(GOOD) + 1
    assert (found["metric"], found["value"]) == ("f1", found["scores"]["f1"])
    assert {name: found["scores"][name] for name in expected} == pytest.approx(expected)
    assert [each["text"] for each in predicted(tmp_path / "p.jsonl")] == [row[0] for row in rows]
    with pytest.raises(UsageError, match="--text-column tale: there is no such column"):
        score(saved, str(file), text="tale")


def test_a_sample_is_the_same_each_time(saved: Saved, reviews: Path, tmp_path: Path) -> None:
    for name in "ab":
        found = score(saved, str(reviews), max_examples=5, predictions=tmp_path / name)
        assert found["examples"] == 5
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert score(saved, str(reviews), max_examples=500)["examples"] == 64


def test_a_file_alone_needs_data(run: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes((run / "adapter.safetensors").read_bytes())
    with pytest.raises(UsageError, match="an adapter file alone does not know its data; pass --data"):
        score(open_run(str(alone)), None)


def test_options_change_what_is_scored(saved: Saved, tmp_path: Path) -> None:
    whole = score(saved, None)
    short = score(saved, None, options={"max-length": "4"})
    assert short["loss"] != whole["loss"]
    assert score(saved, None, options={"max_length": "32"}) == whole
    assert saved.task.max_length == 32


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("max_lenth=8", "--set max_lenth: text-classification has no option max_lenth; did you mean max_length?"),
        ("num_beams=8", "--set num_beams: text-classification has no option num_beams"),
        ("labels=a", "--set labels: text-classification has no option labels"),
        ("max-length=x", "--set max-length must be a whole number, got 'x'"),
        ("max_length=1", "--set max_length must be at least 2, got 1"),
        ("max_length=-3", "--set max_length must be at least 2, got -3"),
        ("problem=several", "--problem must be single, multi or regression, got several"),
        ("max_length", "--set max_length must be name=value"),
        ("=3", "--set =3 must be name=value"),
    ],
)
def test_wrong_options_are_one_line(given: str, said: str, run: Path) -> None:
    done = invoke("eval", run, "--set", given)
    assert done.code == 2
    assert done.err == f"error: {said}\n"


def test_a_wrong_metric_is_one_line(run: Path) -> None:
    done = invoke("eval", run, "--metric", "bleu")
    assert done.code == 2
    assert done.err.startswith("error: --metric must be one of accuracy, f1, matthews, top5 for text-classification")
