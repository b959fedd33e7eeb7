"""One class of several: classes by name whatever the column's type, and scores by their definitions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value

from capaft.support.errors import UsageError
from capaft.tasks.base.columns import Columns
from capaft.tasks.labels.single_label import SingleLabel, check_scoring

PROBLEM = SingleLabel()
COLUMNS = Columns("text", None, "label")
LONG = [f"a sentence of its own, number {i}" for i in range(8)]


def table(values: list[Any]) -> Dataset:
    return Dataset.from_dict({"text": (LONG * 300)[: len(values)], "label": values})


def class_label(names: list[str], values: Sequence[int | None]) -> Dataset:
    features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
    return Dataset.from_dict({"text": LONG[: len(values)], "label": list(values)}, features=features)


def encoded(rows: Dataset, labels: Sequence[str]) -> list[int]:
    return PROBLEM.encode(rows, COLUMNS, labels).tolist()


@pytest.mark.parametrize(
    ("values", "names", "indices"),
    [
        ([10, 9, -1, 9], ("-1", "9", "10"), [2, 1, 0, 1]),
        ([True, False, False], ("False", "True"), [1, 0, 0]),
        (["b", "a", "B", "a"], ("B", "a", "b"), [2, 1, 0, 1]),
        (["10", "9", "10"], ("10", "9"), [0, 1, 0]),
        ([1.0, 0.0, 10.0, 1.0], ("0", "1", "10"), [1, 0, 2, 1]),
    ],
)
def test_classes(values: list[Any], names: tuple[str, ...], indices: list[int]) -> None:
    assert PROBLEM.classes(table(values), COLUMNS) == names
    assert encoded(table(values), names) == indices


def test_class_label_keeps_its_order() -> None:
    dataset = class_label(["pos", "neg", "neutral"], [0, 1, 1])
    assert PROBLEM.classes(dataset, COLUMNS) == ("pos", "neg", "neutral")
    assert encoded(dataset, ["pos", "neg", "neutral"]) == [0, 1, 1]


def test_classes_are_matched_by_name() -> None:
    names = ["neg", "pos"]
    assert encoded(class_label(["pos", "neg"], [0, 1, 1]), names) == [1, 0, 0]
    assert encoded(table(["pos", "neg"]), names) == [1, 0]
    assert encoded(table([1, 0]), names) == [1, 0]
    assert encoded(table(["9", "7"]), ["7", "9"]) == [1, 0]
    assert encoded(table([9, 7]), ["7", "9"]) == [1, 0]


def test_rows_that_were_selected() -> None:
    dataset = table(["a", "b", "c", "a", "b", "c", "a", "b"]).select([5, 2, 1])
    assert PROBLEM.classes(dataset, COLUMNS) == ("b", "c")
    assert encoded(dataset, ["b", "c"]) == [1, 1, 0]


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ([0, None, 1], ["row 2 ('a sentence of its own, number 1')", "no label in column 'label'"]),
        (["a", "", "b"], ["row 2", "no label"]),
        ([0.0, float("nan"), 1.0], ["row 2", "no label"]),
        ([5.0, 3.8, 1.0], ["row 2", "3.8", "--problem regression", "--label-column"]),
        ([-1, -1, -1], ["every label in column 'label' is -1", "withheld"]),
        ([1, 1, 1], ["every label in column 'label' is '1'", "two classes"]),
        ([[1], [2], []], ["column 'label' does not hold one label per row", "--problem multi"]),
        ([1, 2, 3], ["3 different values in 3 rows", "not look like a label", "--label-column", "text (string)"]),
        (LONG[:3], ["3 different values in 3 rows"]),
        ([*range(1001), *range(1001)], ["1001 different values in 2002 rows"]),
    ],
)
def test_labels_that_are_wrong(values: list[Any], parts: list[str]) -> None:
    with pytest.raises(UsageError) as error:
        PROBLEM.classes(table(values), COLUMNS)
    assert "\n" not in str(error.value)
    assert all(part in str(error.value) for part in parts)


def test_class_labels_that_are_wrong() -> None:
    for values, part in (
        ([0, -1, 1], "row 2"),
        ([-1, -1, -1], "withheld"),
        ([1, 1, 1], "is 'b'"),
        ([0, None], "row 2"),
    ):
        with pytest.raises(UsageError, match=re.escape(part)):
            PROBLEM.classes(class_label(["a", "b"], values), COLUMNS)


def test_label_that_training_lacks() -> None:
    match = r"row 3 \('a sentence of its own, number 2'\).* no label 'yess'; its labels are no, yes; did you mean yes\?"
    with pytest.raises(UsageError, match=match):
        encoded(table(["yes", "no", "yess"]), ["no", "yes"])
    with pytest.raises(UsageError, match=r"row 2 .*no label '2'.* are neg, pos"):
        encoded(table([0, 2]), ["neg", "pos"])
    with pytest.raises(UsageError, match=r"its labels are 0, 1, .*9, \.\.\.$"):
        encoded(table(["?"]), [str(i) for i in range(20)])


def test_withheld_and_missing_labels_cannot_be_encoded() -> None:
    with pytest.raises(UsageError, match="withheld"):
        encoded(table([-1, -1]), ["0", "1"])
    with pytest.raises(UsageError, match=r"row 2 .*no label"):
        encoded(table([1, None]), ["0", "1"])


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_loss_is_the_sum_of_cross_entropies(smoothing: float) -> None:
    logits, classes = np.random.default_rng(0).normal(size=(5, 3)), [0, 2, 1, 1, 0]
    expected = 0.0
    for row, right in zip(logits, classes, strict=True):
        for position, logit in enumerate(row):
            target = (1 - smoothing) * (position == right) + smoothing / 3
            expected -= target * (logit - np.log(np.exp(row).sum()))
    assert PROBLEM.loss(torch.tensor(logits), torch.tensor(classes), smoothing).item() == pytest.approx(expected)


def test_scores_of_two_classes() -> None:
    truth, predicted = np.array([0, 0, 1, 1, 1, 0]), np.array([0, 1, 1, 1, 0, 0])
    tp, fp, fn, tn = 2, 1, 1, 2
    scores = PROBLEM.scores(truth, predicted, 2)
    assert (*scores, "top5", "precision", "recall") == PROBLEM.metrics
    assert scores["accuracy"] == pytest.approx((tp + tn) / 6)
    of_second, of_first = 2 * tp / (2 * tp + fp + fn), 2 * tn / (2 * tn + fp + fn)
    assert scores["f1"] == pytest.approx((of_first + of_second) / 2)
    of_label = SingleLabel(positive_label="yes").positive_scores(truth, predicted, ["no", "yes"])
    assert of_label == pytest.approx({"f1": of_second, "precision": tp / (tp + fp), "recall": tp / (tp + fn)})
    expected = (tp * tn - fp * fn) / np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert scores["matthews"] == pytest.approx(expected)


def test_scores_of_three_classes() -> None:
    truth, predicted = np.array([0, 1, 2]), np.array([0, 2, 2])
    assert PROBLEM.scores(truth, predicted, 3)["f1"] == pytest.approx((1 + 0 + 2 / 3) / 3)


def test_a_class_is_among_the_five_likeliest() -> None:
    logits = np.random.default_rng(0).normal(size=(200, 7))
    truth = np.arange(200) % 6
    best = np.argsort(-logits)
    right = sum(label in row[:5] for row, label in zip(best, truth, strict=True))
    assert PROBLEM.ranking(truth, logits) == {"top5": pytest.approx(right / 200)}
    assert 0 < right < 200
    assert PROBLEM.ranking(truth % 5, logits[:, :5]) == {}
    with pytest.raises(UsageError, match=r"^--metric top5 is always 1 with 5 classes; choose accuracy or f1"):
        check_scoring("top5", "abcde", "")
    check_scoring("top5", "abcdef", "")
    check_scoring("f1", "ab", "")


def test_predicted_is_the_largest_logit() -> None:
    assert PROBLEM.predicted(np.array([[2.0, 1.0, 0.0], [0.0, -1.0, 3.0]])).tolist() == [0, 2]
    assert PROBLEM.named(np.int64(1), ["no", "yes"]) == "yes"
