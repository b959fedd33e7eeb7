"""Regression: targets, and scores by their definitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value

from capaft.support.errors import UsageError
from capaft.tasks.base.columns import Columns
from capaft.tasks.labels.regression import Regression

PROBLEM = Regression()
COLUMNS = Columns("text", None, "label")


def table(values: list[Any]) -> Dataset:
    return Dataset.from_dict({"text": [f"text {i}" for i in range(len(values))], "label": values})


def test_numbers() -> None:
    assert PROBLEM.classes(table([0.5]), COLUMNS) == ()
    assert PROBLEM.encode(table([0.5, 4.0]), COLUMNS, ()).tolist() == [0.5, 4.0]
    assert PROBLEM.encode(table([3, -2]), COLUMNS, ()).dtype == np.float32


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["a", "b"], r"^--problem regression: column 'label' does not hold one number per row.*--label-column"),
        ([[1.0], [2.0]], r"^--problem regression: column 'label' does not hold"),
        ([0.5, None], r"^row 2 \('text 1'\): no label in column 'label'"),
        ([0.5, float("nan")], r"^row 2 .*no label"),
        ([0.5, float("inf")], r"^row 2 .*the label inf is not a finite float32"),
        ([-1.0, -1.0], "withheld"),
    ],
)
def test_labels_that_are_wrong(values: list[Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        PROBLEM.encode(table(values), COLUMNS, ())


def test_classes_are_no_numbers() -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["a", "b"])})
    with pytest.raises(UsageError, match="does not hold one number"):
        PROBLEM.encode(Dataset.from_dict({"text": ["x"], "label": [1]}, features=features), COLUMNS, ())


def test_loss_is_the_sum_of_squares() -> None:
    assert PROBLEM.loss(torch.tensor([[1.0], [3.0]]), torch.tensor([0.5, 5.0]), 0.1).item() == 0.25 + 4.0


def test_scores() -> None:
    truth, predicted = np.array([1.0, 2.0, 3.0, 5.0]), np.array([1.0, 4.0, 3.0, 9.0])
    scores = PROBLEM.scores(truth, predicted, 1)
    assert tuple(scores) == PROBLEM.metrics
    x, y = truth - truth.mean(), predicted - predicted.mean()
    assert scores["pearson"] == pytest.approx((x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum()))
    # Ranks 1 2 3 4 and 1 3 2 4: 1 - 6 sum(d^2) / (n (n^2 - 1)).
    assert scores["spearman"] == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert scores["pearson_spearman"] == pytest.approx((scores["pearson"] + scores["spearman"]) / 2)
    assert scores["mse"] == (0 + 4 + 0 + 16) / 4
    assert scores["mae"] == (0 + 2 + 0 + 4) / 4


@pytest.mark.filterwarnings("error")
def test_what_does_not_vary_correlates_with_nothing() -> None:
    assert PROBLEM.scores(np.array([1.0, 2.0]), np.array([3.0, 3.0]), 1)["pearson_spearman"] == 0
    assert PROBLEM.scores(np.array([1.0]), np.array([3.0]), 1)["pearson"] == 0


def test_predicted_is_the_only_output() -> None:
    assert PROBLEM.predicted(np.array([[2.5], [0.5]])).tolist() == [2.5, 0.5]
    assert PROBLEM.named(np.float32(2.5), ()) == 2.5
