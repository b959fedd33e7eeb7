"""Rows that name their adapters, against each adapter opened alone."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import tiny_bank
from command_line import invoke

import capaft

TEXTS = ["A superb film.", "Rain is likely, and then more rain.", "Goal!", "Tedious.", "Buy now and win a watch"]
NAMES = [*tiny_bank.LABELS, "mood"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bank.checkpoint(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def bank(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bank.write_bank(tmp_path_factory.mktemp("bank"), base)


def alone(bank: Path, base: Path, text: str, name: str) -> dict[str, Any]:
    (record,) = capaft.open(bank / f"{name}.safetensors", model=base).predict([text], top=2)
    return record


def table(path: Path, rows: list[tuple[Any, ...]]) -> Path:
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([("id", "text", "adapter"), *rows])
    return path


def test_each_row_is_answered_by_its_adapter(bank: Path, base: Path, tmp_path: Path) -> None:
    file = table(tmp_path / "rows.csv", [(at, *row) for at, row in enumerate(zip(TEXTS, NAMES, strict=True))])
    done = invoke("predict", "--bank", bank, "--model", base, "--data", file, "--top", "2")
    assert done.code == 0, done.err
    records = [json.loads(line) for line in done.out.splitlines()]
    for at, (record, text, name) in enumerate(zip(records, TEXTS, NAMES, strict=True)):
        expected = alone(bank, base, text, name)
        assert (record["id"], record["text"], record["adapter"]) == (at, text, name)
        assert record["label"] == expected["label"]
        assert record["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-5)
    out = tmp_path / "p.csv"
    assert invoke("predict", "--bank", bank, "--model", base, "--data", file, "--output", out).code == 0
    with out.open(newline="") as stream:
        assert [row["label"] for row in csv.DictReader(stream)] == [record["label"] for record in records]


def test_rows_whose_adapter_cannot_answer(bank: Path, base: Path, tmp_path: Path) -> None:
    import shutil

    copy = Path(shutil.copytree(bank, tmp_path / "bank"))
    (copy / "cut.safetensors").write_bytes((copy / "mood.safetensors").read_bytes()[:-1])
    rows = [("cut", "cut"), ("a", "mood"), ("b", "nobody"), ("c", ""), ("", "spam"), ("d", "../mood")]
    file = table(tmp_path / "rows.csv", [(0, *row) for row in rows])
    done = invoke("predict", "--bank", copy, "--model", base, "--data", file)
    assert done.code == 1
    assert done.err.splitlines()[-1].startswith("error: 5 of 6 rows have no answer (row 1: ")
    errors = [json.loads(line).get("error") for line in done.out.splitlines()]
    assert errors[0].endswith("is truncated or has bytes that its header does not name; copy it again")
    assert errors[1] is None
    assert errors[2:] == [
        f"{copy} has no adapter nobody",
        "there is nothing in column 'adapter'",
        "there is nothing in column 'text'",
        f"{copy} has no adapter ../mood",
    ]


def test_command_lines_that_make_no_sense(bank: Path, tmp_path: Path) -> None:
    file = table(tmp_path / "rows.csv", [(1, "a", "mood")])
    lines = {
        ("predict",): "name one RUN, or a directory of adapters with --bank",
        ("predict", bank, "--bank", bank): "name one RUN, or a directory",
        ("predict", "--bank", bank): "--bank answers rows that name their adapters",
        ("predict", "--bank", bank, "--text", "a"): "--bank answers rows that name their adapters",
        ("predict", "--bank", bank, "--data", file, "--adapter-column", "adaptr"): "did you mean adapter?",
        ("predict", "--bank", bank, "--data", file, "--set", "max_length=3"): "--set changes one task",
        ("predict", "--bank", tmp_path / "none", "--data", file): "No such file or directory; name a bank's directory",
        ("predict", "--bank", tmp_path, "--data", file): "no adapter can answer these rows",
    }
    for arguments, line in lines.items():
        done = invoke(*arguments)
        assert (done.code, done.out) == (2, "")
        assert line in done.err
        assert len(done.err.splitlines()) == 1
