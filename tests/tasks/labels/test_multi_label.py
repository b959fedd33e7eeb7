"""Any number of classes: every way of writing them down, and scores by their definitions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value

from capaft.support.errors import UsageError
from capaft.tasks.base.columns import Columns
from capaft.tasks.labels.multi_label import MultiLabel

COLUMNS = Columns("text", None, "label")


def table(values: list[Any], feature: Any = None) -> Dataset:
    columns = {"text": [f"text {i}" for i in range(len(values))], "label": values}
    return Dataset.from_dict(columns, Features({"text": Value("string"), "label": feature}) if feature else None)


def read(rows: Dataset, separator: str = "", columns: Columns = COLUMNS) -> tuple[tuple[str, ...], list[list[float]]]:
    problem = MultiLabel(separator)
    labels = problem.classes(rows, columns)
    return labels, problem.encode(rows, columns, labels).tolist()


@pytest.mark.parametrize(
    ("values", "labels", "targets"),
    [
        ([["joy", "fear"], [], ["joy"]], ("fear", "joy"), [[1, 1], [0, 0], [0, 1]]),
        ([[10], [9, 10], []], ("9", "10"), [[0, 1], [1, 1], [0, 0]]),
        ([[1], [0], [2]], ("0", "1", "2"), [[0, 1, 0], [1, 0, 0], [0, 0, 1]]),
        ([[0, 1, 1], [0, 0, 0]], ("0", "1", "2"), [[0, 1, 1], [0, 0, 0]]),
        ([[0.0, 1.0], [0.0, 0.0]], ("0", "1"), [[0, 1], [0, 0]]),
        ([[True, False], [True, True]], ("0", "1"), [[1, 0], [1, 1]]),
    ],
)
def test_lists(values: list[Any], labels: tuple[str, ...], targets: list[list[int]]) -> None:
    assert read(table(values)) == (labels, targets)


def test_class_labels_keep_their_order() -> None:
    rows = table([[1], [0, 2], []], List(ClassLabel(names=["pos", "neg", "odd"])))
    assert read(rows) == (("pos", "neg", "odd"), [[0, 1, 0], [1, 0, 1], [0, 0, 0]])


def test_separated_texts() -> None:
    assert read(table(["b, a", "", "a"]), ",") == (("a", "b"), [[1, 1], [0, 0], [1, 0]])


def test_columns_of_flags() -> None:
    rows = Dataset.from_dict({"text": ["x", "y"], "rude": [0, 1], "loud": [True, True]})
    assert read(rows, columns=Columns("text", None, None, ("rude", "loud"))) == (("rude", "loud"), [[0, 1], [1, 1]])


@pytest.mark.parametrize(
    ("values", "labels", "targets"),
    [
        ([["b"], ["a", "b"]], ["a", "b", "c"], [[0, 1, 0], [1, 1, 0]]),
        ([[1], [0, 1]], ["a", "b", "c"], [[0, 1, 0], [1, 1, 0]]),
        ([[0, 1, 0]], ["a", "b", "c"], [[0, 1, 0]]),
        ([[0, 1]], ["0", "1", "2"], [[1, 1, 0]]),
        ([[]], ["a", "b"], [[0, 0]]),
    ],
)
def test_other_splits_are_read_with_the_classes_of_training(
    values: list[Any], labels: Sequence[str], targets: list[list[int]]
) -> None:
    assert MultiLabel().encode(table(values), COLUMNS, labels).tolist() == targets


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([["a"], None], r"^row 2 \('text 1'\): no label in column 'label'"),
        ([["a"], ["b", ""]], r"^row 2 .*no label"),
        (["a", "b"], r"^--problem multi: column 'label' holds one value per row; give lists, .*--label-separator"),
        ([1, 0], r"^--problem multi: column 'label' holds one value per row"),
        (
            [[0.5, 1.0], [0.0, 1.0]],
            r"^column 'label': lists of labels must hold names, class numbers, or a 0 or 1 for each class",
        ),
        ([[0, 1, 0], [0, 1, 0, 0]], r"^row 1 .*twice in \[0, 1, 0\]; for a 0 or 1 for each class, every row needs"),
        ([["a"], ["a"]], r"^column 'label' has 1 different labels; --problem multi needs 2 to 1000"),
        ([["a"], ["b"]] + [[str(i)] for i in range(999)], "has 1001 different labels"),
    ],
)
def test_labels_that_are_wrong(values: list[Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        MultiLabel().classes(table(values), COLUMNS)
    assert "\n" not in str(error.value)


def test_label_that_training_lacks() -> None:
    with pytest.raises(UsageError, match=r"^row 2 .*no label 'fearr'; its labels are fear, joy; did you mean fear\?"):
        MultiLabel().encode(table([["joy"], ["joy", "fearr"]]), COLUMNS, ["fear", "joy"])


def test_a_flag_that_is_neither() -> None:
    rows = Dataset.from_dict({"text": ["x", "y"], "rude": [0, 2], "loud": [1, 1]})
    with pytest.raises(
        UsageError, match=r"^row 2 \('y'\): column 'rude' holds 2; a column for each label must hold 0 or 1"
    ):
        read(rows, columns=Columns("text", None, None, ("rude", "loud")))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_loss_sums_the_binary_cross_entropies(smoothing: float) -> None:
    draw = np.random.default_rng(0)
    logits, targets = draw.normal(size=(4, 3)), draw.integers(0, 2, (4, 3)).astype(float)
    expected = 0.0
    for logit, target in zip(logits.ravel(), targets.ravel(), strict=True):
        smooth = target * (1 - smoothing) + (1 - target) * smoothing if smoothing == 0 else abs(target - smoothing / 2)
        p = 1 / (1 + np.exp(-logit))
        expected -= smooth * np.log(p) + (1 - smooth) * np.log(1 - p)
    assert MultiLabel().loss(torch.tensor(logits), torch.tensor(targets), smoothing).item() == pytest.approx(expected)


def test_scores() -> None:
    truth = np.array([[1, 0, 1], [0, 0, 1], [1, 1, 0], [0, 0, 0]])
    predicted = np.array([[1, 0, 0], [0, 1, 1], [1, 1, 0], [0, 0, 0]])
    scores = MultiLabel().scores(truth, predicted, truth.shape[1])
    assert tuple(scores) == MultiLabel.metrics
    # By class: tp 2, 1, 1; fp 0, 1, 0; fn 0, 0, 1.
    assert scores["f1"] == pytest.approx(2 * 4 / (2 * 4 + 1 + 1))
    assert scores["f1_macro"] == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)
    assert scores["accuracy"] == 2 / 4


def test_predicted_is_what_is_likelier_than_not() -> None:
    assert MultiLabel().predicted(np.array([[0.1, -0.1], [-3.0, 0.0]])).tolist() == [[1, 0], [0, 0]]
    assert MultiLabel().named(np.array([0.0, 1.0, 1.0]), ["a", "b", "c"]) == ["b", "c"]
