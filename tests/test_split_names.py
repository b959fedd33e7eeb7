"""Names of files and directories as splits."""

from __future__ import annotations

import pytest

from capaft.split_names import role, validation_name


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
        ("validation_mismatched.csv", None),
        ("values.csv", None),
        ("my_train.csv", None),
        ("cat", None),
    ],
)
def test_role(name: str, split: str | None) -> None:
    assert role(name) == split


def test_validation_goes_before_dev_and_dev_before_test() -> None:
    assert validation_name(["train", "test", "dev", "validation"]) == "validation"
    assert validation_name(["train", "test", "dev"]) == "dev"
    assert validation_name(["train", "extra"]) is None
