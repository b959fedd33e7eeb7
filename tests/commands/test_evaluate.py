"""`capaft eval`: the value that training reported, or that of other data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import QUICK, invoke
from tiny_job import bert
from transformers import BertForSequenceClassification


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bert(tmp_path_factory.mktemp("model"), BertForSequenceClassification)


def test_eval_gives_the_number_that_training_reported(run: Path, results: dict) -> None:
    done = invoke("eval", run, "--json")
    scored = json.loads(done.out)
    assert done.code == 0
    assert (scored["metric"], scored["value"]) == (results["metric"], results["value"])
    assert scored["examples"] == 6


def test_eval_of_a_bare_file_on_other_data(run: Path, reviews: Path, tmp_path: Path) -> None:
    alone = tmp_path / "some.safetensors"
    alone.write_bytes((run / "adapter.safetensors").read_bytes())
    scored = json.loads(invoke("eval", alone, "--data", reviews, "--json").out)
    assert scored["examples"] == 64
    assert invoke("eval", alone).code == 2


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int8", "int4"])
def test_reported_value_is_that_of_the_numbers_as_saved(dtype: str, small: Path, reviews: Path, tmp_path: Path) -> None:
    flags = ("--data", reviews, "--model", small, "--output", tmp_path / "run", "--save-dtype", dtype, "--json")
    done = invoke("train", *flags, *QUICK)
    assert json.loads(invoke("eval", tmp_path / "run", "--json").out)["value"] == json.loads(done.out)["value"]
