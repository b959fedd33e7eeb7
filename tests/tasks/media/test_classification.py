"""The code that image and audio classification share, tried on images."""

from __future__ import annotations

import io
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Array2D, Audio, ClassLabel, Dataset, Features, Image, List, Value
from tiny_media import NO_COLUMNS, picture, vit

from capaft.config.parts.model import ModelSettings
from capaft.model.load import BaseModel
from capaft.support.errors import UsageError
from capaft.tasks.audio_classification import AudioClassification
from capaft.tasks.base.columns import Columns
from capaft.tasks.image_classification import ImageClassification

SEVEN = tuple("abcdefg")
COLUMNS = Columns("image", None, "label")


def png(seed: int = 0) -> bytes:
    stream = io.BytesIO()
    picture(20, 10, seed=seed).save(stream, "PNG")
    return stream.getvalue()


def rows(**columns: Any) -> Dataset:
    """Images in memory, with a class each."""
    features = {name: Value("string") for name in columns}
    features |= {"image": Image(decode=False), "label": ClassLabel(names=["cat", "dog"])}
    images = [{"path": None, "bytes": png(seed)} for seed in range(3)]
    return Dataset.from_dict({"image": images, "label": [0, 1, 0], **columns}, Features(features))


def empty(**features: Any) -> Dataset:
    return Dataset.from_dict({name: [] for name in features}, Features(features))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return ImageClassification(("cat", "dog")).load_model(
        ModelSettings(model=vit(tmp_path_factory.mktemp("vit"))), seed=0
    )


def scored(labels: tuple[str, ...], truth: Any, logits: Any) -> dict[str, float]:
    return ImageClassification(labels).score(SimpleNamespace(references=np.array(truth)), list(np.float32(logits)))


# Columns

INT, TEXT, CLASS = Value("int64"), Value("string"), ClassLabel(names=["a", "b"])


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ({"image": Image(), "label": CLASS}, ("image", "label")),
        ({"img": Image(decode=False), "fine_label": CLASS, "coarse_label": CLASS}, ("img", "fine_label")),
        ({"image": {"bytes": Value("binary"), "path": TEXT}, "digit": INT}, ("image", "digit")),
        ({"image": Array2D((28, 28), "uint8"), "labels": TEXT}, ("image", "labels")),
        ({"image": List(List(INT)), "y": INT, "label": TEXT}, ("image", "label")),
        ({"file_name": TEXT, "category": TEXT, "caption": TEXT}, ("file_name", "category")),
        ({"scan": Image(), "age": INT, "diagnosis": CLASS}, ("scan", "diagnosis")),
    ],
)
def test_columns_are_found(features: dict[str, Any], expected: tuple[str, str]) -> None:
    columns = ImageClassification.recognise(empty(**features), NO_COLUMNS)
    assert (columns.text, columns.label) == expected


def test_columns_of_recordings_are_found() -> None:
    speech = empty(file=TEXT, audio=Audio(decode=False), label=CLASS, is_unknown=Value("bool"), speaker_id=TEXT)
    assert AudioClassification.recognise(speech, NO_COLUMNS) == Columns("audio", None, "label")
    arrays = empty(audio={"array": List(Value("float32")), "sampling_rate": INT}, emotion=TEXT)
    assert AudioClassification.recognise(arrays, NO_COLUMNS) == Columns("audio", None, "emotion")


def test_given_columns_are_taken() -> None:
    both = empty(before=Image(), after=Image(), label=CLASS, age=INT)
    columns = ImageClassification.recognise(both, {"text": "after", "pair": None, "label": "age"})
    assert columns == Columns("after", None, "age")


@pytest.mark.parametrize(
    ("features", "named", "message"),
    [
        ({"image": Image(), "label": CLASS}, {"text": "picture"}, "--text-column picture: there is no such column"),
        ({"image": Image(), "label": CLASS, "n": INT}, {"text": "n"}, "does not hold image files, their paths or"),
        ({"image": Image(), "label": Image()}, {"label": "label"}, "does not hold one class a row"),
        ({"image": TEXT, "label": CLASS}, {"text": "image", "label": "image"}, "has another role"),
        ({"image": Image(), "label": CLASS}, {"pair": "label"}, "--pair-column label: .* takes one image a row"),
        ({"before": Image(), "after": Image(), "label": CLASS}, {}, "'before' and 'after' both could be"),
        ({"image": Image(), "img": Image(), "label": CLASS}, {}, "'image' and 'img' both could be"),
        ({"vector": List(INT), "label": CLASS}, {}, "none has a usual name or is of type Image"),
        ({"image": Image(), "age": INT}, {}, "which column is the label .* --label-column"),
    ],
)
def test_columns_that_cannot_be_told(features: dict[str, Any], named: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ImageClassification.recognise(empty(**features), NO_COLUMNS | named)


# Features


def test_labels_are_matched_by_name(base: BaseModel) -> None:
    assert ImageClassification.classes(rows(), COLUMNS) == ("cat", "dog")
    task = ImageClassification(("dog", "cat"))
    assert task.features(base, rows(), COLUMNS, training=True).references.tolist() == [1, 0, 1]
    named = rows(name=["dog", "dog", "cat"])
    examples = task.features(base, named, Columns("image", None, "name"), training=True)
    assert examples.references.tolist() == [0, 0, 1]


def test_unknown_labels_name_their_row(base: BaseModel) -> None:
    task, columns = ImageClassification(("cat", "dog")), Columns("image", None, "name")
    split = rows(name=["dog", "cow", "cat"])
    for ask in (task.check_labels, lambda *arguments: task.features(base, *arguments, training=False)):
        with pytest.raises(UsageError, match=r"^row 2: the training data has no label 'cow'; its labels are cat, dog"):
            ask(split, columns)


def test_missing_inputs_name_their_row(base: BaseModel) -> None:
    split = Dataset.from_dict(
        {"image": [{"path": "a.png", "bytes": None}, None], "label": ["cat", "dog"]},
        Features({"image": Image(decode=False), "label": TEXT}),
    )
    with pytest.raises(UsageError, match=r"^row 2: nothing in column 'image'"):
        ImageClassification(("cat", "dog")).features(base, split, COLUMNS, training=True)


def test_files_that_cannot_be_read_name_their_row(base: BaseModel, tmp_path: Path) -> None:
    task, damaged = ImageClassification(("cat", "dog")), tmp_path / "damaged.png"
    damaged.write_bytes(png()[:40])
    records = [
        {"path": None, "bytes": b"x"},
        {"path": str(damaged), "bytes": None},
        {"path": "/gone.png", "bytes": None},
    ]
    split = Dataset.from_dict(
        {"image": records, "label": ["cat", "dog", "cat"]}, Features({"image": Image(decode=False), "label": TEXT})
    )
    examples = task.features(base, split, COLUMNS, training=True)
    for index, where in enumerate(["image without a file name", str(damaged), "/gone.png"]):
        with pytest.raises(UsageError, match=f"^row {index + 1}: {re.escape(where)}: cannot read this image") as caught:
            task.collate(base, examples, [index], training=True)
        assert "\n" not in str(caught.value)


def test_rows_go_by_their_file_or_their_number(base: BaseModel) -> None:
    task = ImageClassification(("cat", "dog"))
    images = [{"path": "cat/1.png", "bytes": png()}, {"path": None, "bytes": png()}]
    forms: list[tuple[Any, Any, list[str]]] = [
        (images, Image(decode=False), ["row 1", "cat/1.png"]),
        (images, Image(), ["row 1", "cat/1.png"]),
        (["cat/1.png", "dog/2.png"], TEXT, ["dog/2.png", "cat/1.png"]),
        (np.zeros((2, 4, 4), np.uint8), Array2D((4, 4), "uint8"), ["row 1", "row 2"]),
    ]
    for values, feature, names in forms:
        kinds = Features({"image": feature, "label": TEXT})
        split = Dataset.from_dict({"image": values, "label": ["cat", "dog"]}, kinds).select([1, 0])
        examples = task.features(base, split, COLUMNS, training=False)
        assert examples.sources == names
        assert len(examples) == 2
    assert task.show(base, examples, 1) == "row 2 -> cat"
    records = task.report(examples, [np.array([2.0, 1.0]), np.array([0.0, 3.0])])
    assert records == [
        {"image": "row 1", "predicted": "cat", "label": "dog"},
        {"image": "row 2", "predicted": "dog", "label": "cat"},
    ]


# Loss and scores


def test_loss_is_the_sum_over_the_batch() -> None:
    logits, labels, smoothing = np.random.default_rng(0).normal(size=(5, 7)), [3, 0, 6, 6, 1], 0.2
    expected = 0.0
    for row, label in zip(logits, labels, strict=True):
        log_probabilities = [value - math.log(sum(map(math.exp, row))) for value in row]
        expected -= (1 - smoothing) * log_probabilities[label] + smoothing * sum(log_probabilities) / 7
    outputs = SimpleNamespace(logits=torch.from_numpy(logits).bfloat16())
    exact = SimpleNamespace(logits=torch.from_numpy(logits))
    targets = {"labels": torch.tensor(labels)}
    task = ImageClassification(SEVEN)
    assert task.loss(exact, targets, smoothing).item() == pytest.approx(expected, rel=1e-5)
    assert task.loss(outputs, targets, smoothing).dtype == torch.float32


def test_scores_against_their_definitions() -> None:
    random = np.random.default_rng(0)
    logits, truth = random.normal(size=(200, 7)), random.integers(0, 7, 200).tolist()
    best = [sorted(range(7), key=lambda index, row=row: -row[index]) for row in logits]
    pairs = list(zip([row[0] for row in best], truth, strict=True))
    f1 = []
    for index in range(7):
        right = sum(predicted == label == index for predicted, label in pairs)
        f1.append(2 * right / sum((predicted == index) + (label == index) for predicted, label in pairs))
    scores = scored(SEVEN, truth, logits)
    assert scores == {
        "accuracy": pytest.approx(sum(predicted == label for predicted, label in pairs) / 200),
        "f1": pytest.approx(sum(f1) / 7),
        "top5": pytest.approx(sum(label in row[:5] for row, label in zip(best, truth, strict=True)) / 200),
    }
    assert scores["accuracy"] < scores["top5"] < 1


def test_scores_of_a_split_that_lacks_classes() -> None:
    logits = np.eye(7)[[2, 2, 5]]
    assert scored(SEVEN, [2, 2, 2], logits) == {
        "accuracy": pytest.approx(2 / 3),
        "f1": pytest.approx((0.8 + 0) / 2),
        "top5": 1,
    }


def test_five_classes_have_no_top_five() -> None:
    assert scored(SEVEN[:5], [0], [[1, 0, 0, 0, 0]]).keys() == {"accuracy", "f1"}
    with pytest.raises(UsageError, match=r"^--metric top5 is always 1 with 5 classes; choose accuracy or f1"):
        ImageClassification(SEVEN[:5], metric="top5")
    assert ImageClassification(SEVEN, metric="top5").more_is_better


def test_predictions_are_small(base: BaseModel) -> None:
    outputs = SimpleNamespace(logits=torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.bfloat16))
    task: Any = ImageClassification(("cat", "dog"))
    predictions = task.predict(base, base.model, None, [0, 1], None, outputs)
    assert [prediction.tolist() for prediction in predictions] == [[1, 2], [3, 4]]
    assert predictions[0].dtype == np.float32
