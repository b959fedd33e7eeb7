"""The baseline: measured where a head is fitted anyway or the checkpoint has one, and kept with the results."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny_job import bert, config, execute
from transformers import BertForMaskedLM, BertForSequenceClassification, BertModel

from capaft.config.train_config import TrainConfig
from capaft.tasks.audio_classification import AudioClassification
from capaft.tasks.base.features import Features
from capaft.tasks.base.task import Task
from capaft.tasks.causal_lm import CausalLM
from capaft.tasks.image_classification import ImageClassification
from capaft.tasks.seq2seq import Seq2Seq
from capaft.tasks.speech_recognition import SpeechRecognition
from capaft.tasks.text_classification import TextClassification
from capaft.tasks.token_classification import TokenClassification
from capaft.training.setup.baseline import baseline_head, measures_baseline
from capaft.training.setup.prepare import prepare_job

CLASSES = np.array([0, 1, 0, 1])


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models")
    bert(directory / "plain", BertModel)
    bert(directory / "reviews", BertForSequenceClassification)
    bert(directory / "words", BertForMaskedLM)
    return directory


def measured(model: Path, data: Path, **changes: Any) -> bool:
    return prepare_job(config(model, data, **{"baseline": None, **changes}), lambda line: None).baseline


@pytest.mark.parametrize(
    ("rows", "changes", "expected"),
    [
        ([{"text": f"a {'good' if i % 2 else 'bad'} film {i}", "label": "xy"[i % 2]} for i in range(40)], {}, True),
        ([{"text": f"a film {i}", "label": i / 7} for i in range(40)], {}, True),
        ([{"text": f"a film {i}", "pair": f"a play {i}", "label": "xy"[i % 2]} for i in range(40)], {}, True),
        # A new head that is not fitted, or cannot be.
        ([{"text": f"a film {i}", "label": "xy"[i % 2]} for i in range(40)], {"head_init": "seeded"}, False),
        ([{"text": f"a film {i}", "label": "xy"[i % 2]} for i in range(40)], {"baseline": False}, False),
        ([{"text": f"a film {i}", "label": ["x", "y"][: i % 3]} for i in range(40)], {}, False),
        ([{"tokens": ["a", "film"], "tags": ["x", "yx"[i % 2]]} for i in range(40)], {}, False),
    ],
)
def test_it_is_measured_where_a_head_is_fitted_anyway(
    rows: list[dict[str, Any]], changes: dict[str, Any], expected: bool, models: Path, tmp_path: Path
) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert measured(models / "plain", data, **changes) is expected


@pytest.mark.parametrize(
    ("task", "references", "new_head", "expected"),
    [
        (ImageClassification(("a", "b")), CLASSES, True, "fitted"),
        (AudioClassification(("a", "b")), CLASSES, True, "fitted"),
        (TextClassification(("a", "b")), CLASSES, False, "own"),
        (TokenClassification(("a", "b")), [CLASSES] * 4, True, None),
        (TokenClassification(("a", "b")), [CLASSES] * 4, False, "own"),
        (CausalLM(), None, False, "own"),
    ],
)
def test_the_head_that_the_base_is_scored_under(
    task: Task, references: Any, new_head: bool, expected: str | None
) -> None:
    train = Features({}, np.ones(4, dtype=np.int64), references)
    assert baseline_head(task, SimpleNamespace(new_head=new_head), train) == expected


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        (CausalLM(), True),
        (CausalLM(layout="prompt", metric="bleu"), False),
        (Seq2Seq(metric="rougeL"), False),
        (Seq2Seq(metric="perplexity"), True),
        (SpeechRecognition(metric="wer"), False),
        (SpeechRecognition(metric="loss"), True),
    ],
)
def test_texts_are_written_for_it_only_if_it_is_asked_for(task: Task, expected: bool) -> None:
    train = Features({}, np.ones(4, dtype=np.int64))
    base: Any = SimpleNamespace(new_head=False)
    assert measures_baseline(task, base, train, TrainConfig(data="rows.csv")) is expected
    assert measures_baseline(task, base, train, TrainConfig(data="rows.csv", baseline=True))


def test_a_checkpoint_that_does_the_task_is_scored_as_it_is(models: Path, tmp_path: Path) -> None:
    data = tmp_path / "lines.txt"
    data.write_text("".join(f"A film of great charm, number {i}.\n" for i in range(60)))
    settings = config(models / "words", data, baseline=None, task="masked-lm", max_steps=2, epochs=None, lr=1e-12)
    results = execute(settings, tmp_path / "run")
    assert results["baseline_head"] == "own"
    # An adapter that has learnt nothing scores the same.
    assert results["baseline"] == pytest.approx(results["value"], rel=1e-4)
    card = (tmp_path / "run" / "README.md").read_text()
    assert f"| the base model as it is | {results['baseline']:.4f} |" in card
    # It stays when the run is extended, and other settings do not: the card states the last ones.
    longer = execute(replace(settings, max_steps=4, resume=True), tmp_path / "run")
    assert (longer["baseline"], longer["baseline_head"]) == (results["baseline"], "own")
    assert longer["training_settings"]["restarts"] == [2]
    card = (tmp_path / "run" / "README.md").read_text()
    assert "planned steps 4" in card
    assert "warm-up and schedule started anew at step 2" in card


def test_the_results_say_what_made_them(models: Path, reviews: Path, tmp_path: Path) -> None:
    settings = config(models / "reviews", reviews, baseline=None, method="nola+capaboost", max_steps=2, epochs=None)
    results = execute(settings, tmp_path / "run")
    method, training, machine = (results[f"{name}"] for name in ("method_settings", "training_settings", "machine"))
    expected = {"rank": 2, "alpha": 4.0, "k": [16, 16], "basis": "hadamard", "copies": 2, "density": 0.5, "sites": 4}
    assert expected.items() <= method.items()
    assert {"lr", "head_lr", "batch_size", "schedule", "warmup", "optimizer", "precision"} <= training.keys()
    assert (training["planned_steps"], training["precision"]) == (2, "fp32")
    assert machine.keys() == {"device", "capaft", "python", "torch", "transformers", "accelerate", "datasets"}
    low, high = results["interval"]
    assert 0 <= low <= results["value"] <= high <= 1
    assert results["interval_method"] == "binomial"
    # Nothing of this machine's directories is among the settings.
    assert str(tmp_path) not in json.dumps([method, training, machine])
