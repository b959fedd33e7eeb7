"""`capaft train`: the files of a run, and that it learns and repeats."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import QUICK, invoke
from safetensors.torch import load_file

from capaft.training.parallel import launch

TRAIN_KEYS = {
    "output",
    "metric",
    "value",
    "baseline",
    "trainable_parameters",
    "adapter_bytes",
    "seconds",
    "examples_per_second",
}


def test_a_run_leaves_every_file(run: Path, results: dict) -> None:
    names = {"adapter.safetensors", "last.safetensors", "run.yaml", "metrics.jsonl", "predictions.jsonl"}
    names |= {"results.json", "loss.png", "README.md", "checkpoints", "local.json", ".gitignore"}
    assert {path.name for path in run.iterdir()} == names
    assert results.keys() >= TRAIN_KEYS
    assert results["adapter_bytes"] == (run / "adapter.safetensors").stat().st_size
    tensors = load_file(run / "adapter.safetensors")
    assert results["trainable_parameters"] == sum(t.numel() for t in tensors.values())
    assert results["adapter_parameters"] == 2 * 12 * 32
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if "loss" in r] == list(range(1, results["steps"] + 1))
    assert max(r["value"] for r in records if "value" in r) == results["value"]
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_it_learns(results: dict) -> None:
    assert results["value"] >= 0.8
    assert results["baseline"] is not None


def test_the_saved_configuration_repeats_the_run_to_the_byte(run: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    command = [sys.executable, "-m", "capaft", "train", "--config", str(run / "run.yaml"), "--output", str(again)]
    subprocess.run(command, check=True, capture_output=True, env=environment)
    assert (again / "adapter.safetensors").read_bytes() == (run / "adapter.safetensors").read_bytes()


def test_pairs_and_a_directory_of_splits(tmp_path: Path) -> None:
    rows = [
        {"premise": f"The {a} sleeps.", "hypothesis": f"The {b} sleeps.", "label": int(a == b)}
        for a in ("cat", "dog", "owl", "cow")
        for b in ("cat", "dog", "owl", "cow")
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text(text)
    done = invoke("train", "--data", tmp_path, "--output", tmp_path / "run", "--json", *QUICK)
    assert done.code == 0, done.err
    assert "premise" in done.err
    assert json.loads(invoke("eval", tmp_path / "run", "--json").out)["examples"] == 16


def test_a_launcher_leaves_it_to_its_processes_to_say_what_is_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.yaml").write_text("overwrite: true\nprocesses: 2\n")
    monkeypatch.setattr(launch, "launch_processes", lambda processes, arguments: 0)
    done = invoke("train", "--config", tmp_path / "mine.yaml")
    assert (done.code, done.err) == (0, "")
    assert "overwrite is ignored" in invoke("train", "--config", tmp_path / "mine.yaml", "--print-config").err


@pytest.mark.parametrize(("rank", "lines"), [("0", 1), ("1", 0)])
def test_one_process_speaks_for_all(rank: str, lines: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.yaml").write_text("overwrite: true\n")
    monkeypatch.setenv("RANK", rank)
    done = invoke("train", "--config", tmp_path / "mine.yaml", "--print-config")
    assert (len(done.err.splitlines()), bool(done.out)) == (lines, rank == "0")
