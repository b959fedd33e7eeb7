"""Names of files and directories as splits."""

from __future__ import annotations

import pytest

from capaft.data.splits import BY_RULE, WantedSplits, split_role
from capaft.support.errors import UsageError


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.csv", "train"),
        ("train-00000-of-00002.parquet", "train"),
        ("Training", "train"),
        ("val", "validation"),
        ("val_2.csv", "validation"),
        ("valid.txt", "validation"),
        ("Validation-v1.1", "validation"),
        ("dev", "dev"),
        ("testing", "test"),
        ("eval.csv", "eval"),
        ("evaluation-0.csv", "evaluation"),
        ("evaluated.csv", None),
        ("validation_mismatched.csv", None),
        ("values.csv", None),
        ("my_train.csv", None),
        ("cat", None),
    ],
)
def test_role(name: str, split: str | None) -> None:
    assert split_role(name) == split


def test_validation_goes_before_dev_and_dev_before_test() -> None:
    assert BY_RULE.among(["train", "test", "dev", "validation"]) == ("train", "validation")
    assert BY_RULE.among(["train", "test", "eval", "dev"]) == ("train", "dev")
    assert BY_RULE.among(["train", "test", "eval"]) == ("train", "eval")
    assert BY_RULE.among(["train", "extra"]) == ("train", None)
    assert BY_RULE.among(["a", "b"]) == (None, None)


def test_splits_that_are_asked_for() -> None:
    names = ["train", "train_sft", "test_sft", "test"]
    assert WantedSplits("train_sft", "test_sft").among(names) == ("train_sft", "test_sft")
    assert WantedSplits(evaluation="train_sft").among(names) == ("train", "train_sft")
    assert WantedSplits("test").among(names) == ("test", None)
    with pytest.raises(
        UsageError, match="no split 'tset' in this data set; it has train, train_sft, test_sft, test; did"
    ):
        WantedSplits(evaluation="tset").among(names)
