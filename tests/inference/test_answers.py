"""Answers to rows without labels: against plain torch, in the order of the rows, or a reason why there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_answers
import tiny_media
import torch
from tiny_answers import answers, logits_of
from tiny_job import bert
from transformers import BertForSequenceClassification

from capaft.inference.opened import Opened
from capaft.tasks.audio_classification import AudioClassification
from capaft.tasks.image_classification import ImageClassification
from capaft.tasks.text_classification import TextClassification

TEXTS = ["A film.", "A much longer film, of which nobody saw the end.", "Painful", "", "No", "A hollow play. " * 9]
LABELS = ("bad", "fine", "good")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(bert(tmp_path_factory.mktemp("model"), BertForSequenceClassification))


@pytest.fixture(scope="module")
def single(model: str) -> Opened:
    return tiny_answers.opened(TextClassification(LABELS, max_length=16), model)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_one_class_of_several(single: Opened, batch_size: int) -> None:
    records = answers(single, {"text": TEXTS}, batch_size=batch_size, top=2)
    assert records[3] == {"error": "there is nothing in column 'text'"}
    for text, record in zip(TEXTS, records, strict=True):
        if text:
            shares = torch.softmax(logits_of(single, text), -1)
            order = shares.argsort(descending=True)[:2].tolist()
            assert record["label"] == LABELS[order[0]]
            assert record["probability"] == pytest.approx(float(shares[order[0]]), abs=1e-6)
            assert record["probabilities"] == pytest.approx({LABELS[at]: float(shares[at]) for at in order}, abs=1e-6)
            assert next(iter(record["probabilities"])) == record["label"]
    assert answers(single, {"text": ["A film."]})[0].keys() == {"label", "probability"}


def test_any_number_of_classes(model: str) -> None:
    run = tiny_answers.opened(TextClassification(LABELS, problem="multi"), model)
    with torch.no_grad():
        run.model.classifier.bias += torch.tensor([1.0, -1.0, 0.0])
    for text, record in zip(TEXTS[:3], answers(run, {"text": TEXTS[:3]}), strict=True):
        shares = dict(zip(LABELS, torch.sigmoid(logits_of(run, text)).tolist(), strict=True))
        assert record["labels"] == [label for label in LABELS if shares[label] > 0.5]
        assert record["probabilities"] == pytest.approx({x: shares[x] for x in record["labels"]}, abs=1e-6)
    (record,) = answers(run, {"text": TEXTS[:1]}, top=3)
    assert list(record["probabilities"].values()) == sorted(record["probabilities"].values(), reverse=True)
    assert record["probabilities"].keys() == set(LABELS)


def test_a_number_for_a_pair(model: str) -> None:
    run = tiny_answers.opened(TextClassification(problem="regression"), model)
    rows = {"sentence1": TEXTS[:4], "sentence2": ["One.", None, "Two", "Three"]}
    (
        first,
        *lacking,
    ) = answers(run, rows)
    assert first == {"value": pytest.approx(float(logits_of(run, TEXTS[0], "One.")[0]), abs=1e-6)}
    assert lacking[0] == {"error": "there is nothing in column 'sentence2'"}
    assert lacking[2] == {"error": "there is nothing in column 'sentence1'"}


def test_an_output_that_is_no_number(single: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(single.model.classifier, "bias", torch.nn.Parameter(torch.tensor([0.0, float("nan"), 0.0])))
    assert answers(single, {"text": ["A film."]}) == [{"error": "the model's output is not finite"}]


def test_images_by_path_and_one_that_is_none(tmp_path: Path) -> None:
    run = tiny_answers.opened(ImageClassification(LABELS), tiny_media.vit(tmp_path / "model"))
    pictures = [tiny_media.picture(20, 12, seed=seed) for seed in range(3)]
    paths = [str(tmp_path / f"{at}.png") for at in range(4)]
    for path, image in zip(paths, pictures, strict=False):
        image.save(path)
    Path(paths[3]).write_bytes(b"no picture")
    order = [paths[0], paths[3], paths[2], paths[1]]
    records = answers(run, {"image": order}, batch_size=3)
    assert records[1].keys() == {"error"}
    assert paths[3] in records[1]["error"]
    assert "not an image that Pillow knows" in records[1]["error"]
    for at, record in zip((0, 2, 1), (records[0], records[2], records[3]), strict=True):
        with torch.no_grad():
            shares = run.model(**run.processor(pictures[at], return_tensors="pt")).logits[0].double().softmax(-1)
        assert record["probability"] == pytest.approx(float(shares.max()), abs=1e-6)
    assert run.predict(pictures) == run.predict([np.asarray(image) for image in pictures])
    assert run.predict(np.asarray(pictures[0])) == run.predict(pictures[:1])
    assert [r["probability"] for r in run.predict(paths[:3])] == [r["probability"] for r in run.predict(pictures)]


def test_recordings(tmp_path: Path) -> None:
    run = tiny_answers.opened(AudioClassification(LABELS), tiny_media.wav2vec2(tmp_path / "model"))
    tones = [tiny_media.tone(200, 0.5), tiny_media.tone(400, 0.25)]
    inputs: list[Any] = [{"array": samples, "sampling_rate": tiny_media.RATE} for samples in tones]
    (tmp_path / "broken.wav").write_bytes(tiny_media.wav(tones[0])[:30])
    one, other, broken = run.predict([*inputs, tmp_path / "broken.wav"])
    assert "broken.wav" in broken["error"]
    for samples, record in zip(tones, (one, other), strict=True):
        taken = run.processor(samples, sampling_rate=tiny_media.RATE, return_tensors="pt")
        with torch.no_grad():
            shares = run.model(**taken).logits[0].double().softmax(-1)
        assert record["probability"] == pytest.approx(float(shares.max()), abs=1e-5)
