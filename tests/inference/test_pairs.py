"""Pairs for an adapter whose training nobody knows: both texts count, in whatever form they come, or it says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_bank
import torch
from command_line import invoke

import capaft
from capaft.inference.opened import Opened
from capaft.support.errors import UsageError
from capaft.tasks.token_classification import TokenClassification

TEXT, PAIR = "A film.", "A play."


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bank.checkpoint(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def file(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bank.write_adapter(tmp_path_factory.mktemp("file") / "mood.safetensors", base, ("bad", "good"), 1)


@pytest.fixture(scope="module")
def opened(file: Path, base: Path) -> Opened:
    return capaft.open(file, model=base)


@pytest.fixture(scope="module")
def expected(opened: Opened) -> Any:
    """The shares that the model itself gives a pair, which are not those of its first text."""
    with torch.no_grad():
        of_pair, of_text = (
            opened.model(**opened.processor(*texts, return_tensors="pt")).logits[0].softmax(-1).tolist()
            for texts in ((TEXT, PAIR), (TEXT,))
        )
    assert of_pair[0] != pytest.approx(of_text[0], abs=1e-3)
    return pytest.approx(dict(zip(("bad", "good"), of_pair, strict=True)), abs=1e-5)


@pytest.mark.parametrize(
    "value",
    [
        (TEXT, PAIR),
        {"text": TEXT, "pair": PAIR},
        {"sentence1": TEXT, "sentence2": PAIR},
        {"text": TEXT, "pair": PAIR, "label": "bad"},
    ],
)
def test_values_of_python(opened: Opened, expected: Any, value: Any) -> None:
    (record,) = opened.predict([value], top=2)
    assert record["probabilities"] == expected


def test_named_columns(opened: Opened, expected: Any) -> None:
    (record,) = opened.predict([{"a": TEXT, "b": PAIR}], top=2, text_column="a", pair_column="b")
    assert record["probabilities"] == expected


def test_the_command_line(file: Path, base: Path, expected: Any) -> None:
    done = invoke("predict", file, "--model", base, "--text", TEXT, "--pair-text", PAIR, "--top", "2")
    assert json.loads(done.out)["probabilities"] == expected


def test_a_task_without_pairs_says_so(base: Path, tmp_path: Path) -> None:
    words = tiny_bank.write_adapter(tmp_path / "words.safetensors", base, ("O", "B"), 1, kind=TokenClassification)
    opened = capaft.open(words, model=base)
    with pytest.raises(UsageError, match="takes one input a row, and these rows have two"):
        opened.predict([(TEXT, PAIR)])
    assert "error" not in opened.predict([TEXT])[0]
