"""The F1 of two classes, from training to evaluation: the macro mean, or that of a label that the user names."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from command_line import invoke
from tiny_job import bert
from transformers import BertForSequenceClassification

from capaft.support.errors import UsageError
from capaft.tasks.image_classification import ImageClassification
from capaft.tasks.text_classification import TextClassification


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bert(tmp_path_factory.mktemp("bert"), BertForSequenceClassification)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "payments.csv"
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text", "label"])
        writer.writerows(
            (f"payment {n}", "fraud" if n % 10 == 0 else "Legit " if n % 3 else "legit") for n in range(60)
        )
    return path


def train(model: Path, data: Path, output: Path, *flags: str) -> Any:
    quick = ("--max-steps", "1", "--rank", "2", "--k", "8", "--validation-split", "0.5")
    return invoke("train", "--model", model, "--data", data, "--output", output, *quick, "--normalise-labels", *flags)


def test_f1_is_the_mean_of_both_classes(model: Path, data: Path, tmp_path: Path) -> None:
    done = train(model, data, tmp_path / "run")
    assert done.code == 0, done.err
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    records = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    pairs = [(record["label"], record["predicted"]) for record in records]
    of_classes = []
    for label in ("fraud", "Legit"):
        hits, misses = pairs.count((label, label)), sum((a == label) != (b == label) for a, b in pairs)
        of_classes.append(2 * hits / (2 * hits + misses))
    assert results["labels"] == ["Legit", "fraud"]
    assert results["scores"]["f1"] == pytest.approx(sum(of_classes) / 2)
    assert results["score_names"] == {"f1": "macro F1"}
    assert "(macro F1 " in done.out
    assert "| macro F1 on validation |" in (tmp_path / "run" / "README.md").read_text()
    assert "data   the classes are uneven: always answering Legit has an accuracy of 0.9000; macro F1" in done.err


def test_f1_of_a_label_is_recorded_with_the_adapter(model: Path, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = train(model, data, run, "--positive-label", "FRAUD", "--metric", "recall")
    assert done.code == 0, done.err
    assert "  recall of 'fraud' " in done.err
    assert done.out.startswith("recall of 'fraud' ")
    assert "  (accuracy " in done.out
    scored = invoke("eval", run / "adapter.safetensors", "--data", data, "--json")
    assert scored.code == 0, scored.err
    names = {"f1": "F1 of 'fraud'", "precision": "precision of 'fraud'", "recall": "recall of 'fraud'"}
    assert json.loads(scored.out)["score_names"] == names
    again = invoke("eval", run)
    assert again.out.startswith("recall of 'fraud' ")


@pytest.mark.parametrize("kind", [TextClassification, ImageClassification])
def test_a_positive_label_that_cannot_be(kind: Any) -> None:
    with pytest.raises(
        UsageError, match=r"^--positive-label yess: there is no such label; .* no, yes; did you mean yes"
    ):
        kind(("no", "yes"), positive_label="yess")
    with pytest.raises(UsageError, match=r"^--metric precision needs the label .*--positive-label$"):
        kind(("no", "yes"), metric="precision")
    assert kind(("no", "yes"), metric="f1", positive_label="yes").score_name("f1") == "F1 of 'yes'"


def test_a_positive_label_needs_one_label_a_row() -> None:
    with pytest.raises(UsageError, match=r"^--positive-label needs rows with one label of several"):
        TextClassification(problem="multi", positive_label="yes")


def test_files_of_before_still_load() -> None:
    task = TextClassification(("no", "yes"), 128, "f1", **{"problem": "single", "label_separator": ""})
    assert (task.positive_label, task.normalise_labels, task.score_name("f1")) == ("", False, "macro F1")
