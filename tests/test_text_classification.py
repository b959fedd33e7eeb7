from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer

from capaft import demo
from capaft.columns import Columns
from capaft.errors import UsageError
from capaft.tasks.text_classification import METRICS, TextClassification

TASK = TextClassification(("no", "yes"), 12)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(demo.base_model())


def rows(**columns: list) -> Dataset:
    return Dataset.from_dict({"label": ["no", "yes"], **columns})


def test_pairs_get_segments_and_truncation_is_counted(tokenizer) -> None:
    found = TASK.features(
        tokenizer, rows(a=["short", "word " * 50], b=["one", "word " * 50]), Columns("a", "b", "label")
    )
    assert found.truncated == 1
    assert found.lengths.tolist() == [5, 12]
    assert found.token_type_ids[0] == [0, 0, 0, 1, 1]
    assert found.labels.tolist() == [0, 1]


def test_a_text_of_exactly_the_limit_is_not_cut(tokenizer) -> None:
    text = "word " * 10
    assert TASK.features(tokenizer, rows(a=[text, text]), Columns("a", None, "label")).truncated == 0


def test_batches_are_padded_to_their_longest(tokenizer) -> None:
    found = TASK.features(tokenizer, rows(a=["one", "one two three"]), Columns("a", None, "label"))
    batch = TASK.collate(tokenizer, found, [1, 0])
    assert batch["input_ids"].shape == (2, 5)
    assert batch["attention_mask"].sum(1).tolist() == [5, 3]
    assert batch["labels"].tolist() == [1, 0]


def test_metrics_against_their_definitions() -> None:
    truth, predicted = np.array([0, 0, 1, 1, 1, 0]), np.array([0, 1, 1, 1, 0, 0])
    tp, fp, fn, tn = 2, 1, 1, 2
    assert METRICS["accuracy"](truth, predicted) == pytest.approx((tp + tn) / 6)
    assert METRICS["f1"](truth, predicted) == pytest.approx(2 * tp / (2 * tp + fp + fn))
    expected = (tp * tn - fp * fn) / np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert METRICS["matthews"](truth, predicted) == pytest.approx(expected)
    assert METRICS["f1"](np.array([0, 1, 2]), np.array([0, 2, 2])) == pytest.approx((1 + 0 + 2 / 3) / 3)


def test_score_takes_the_largest_logit() -> None:
    assert TASK.score(torch.tensor([[2.0, 1.0], [0.0, 3.0]]), np.array([0, 1])) == 1.0


def test_unknown_metric() -> None:
    with pytest.raises(UsageError, match="accuracy, f1, matthews"):
        TextClassification(("a", "b"), 12, "bleu")
