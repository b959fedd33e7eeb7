"""`--dry-run`: the plan of a run, which writes nothing, and its estimate of peak memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from command_line import invoke
from tiny_job import bert, config
from transformers import BertForSequenceClassification

from capaft.commands import dry_run
from capaft.commands.dry_run import DryRun, dry_run_text
from capaft.config.train_config import TrainConfig
from capaft.model.demo import demo_model
from capaft.training import batches
from capaft.training.setup.prepare import prepare_job


@pytest.mark.parametrize(
    ("peak", "has_gpu", "says"),
    [
        (3 * 2**30, False, "about 3,072 MiB at its peak, within a quarter on a CPU"),
        (3 * 2**30, True, "about 3,072 MiB at its peak"),
        (None, False, "cannot be estimated for this model"),
    ],
)
def test_an_estimate_says_how_far_it_may_be_off(
    peak: int | None, has_gpu: bool, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    plan = DryRun("runs/one", "k: 8\n", ["query"], 24, 4, 28, 112, 58, 6, peak)
    assert f"memory     {says}" in dry_run_text(plan).splitlines()


def test_budget_and_dry_run_write_nothing(reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = invoke("train", "--data", reviews, "--budget", "5k", "--dry-run", "--json")
    plan = json.loads(done.out)
    assert done.code == 0, done.err
    assert plan["adapter_parameters"] == 24 * (5000 // 24)
    assert len(plan["sites"]) == 12
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, reviews: Path) -> TrainConfig:
    model = bert(tmp_path_factory.mktemp("model"), BertForSequenceClassification)
    return config(model, reviews, batch_size=32)


def estimated(settings: TrainConfig) -> int:
    peak = dry_run._peak_memory(settings, prepare_job(settings, lambda line: None))
    assert peak is not None
    return peak


def test_it_is_near_what_a_run_takes(small: TrainConfig, reviews: Path, tmp_path: Path) -> None:
    flags = ["--model", small.model, "--data", reviews, "--method", "lora", "--batch-size", 32, "--max-length", 16]
    flags += ["--max-steps", 3, "--head-init", "seeded", "--json", "--output", tmp_path / "run"]
    results: list[dict[str, Any]] = []
    for dry_run_flag in (["--dry-run"], []):
        command = [sys.executable, "-m", "capaft", "train", *map(str, flags), *dry_run_flag]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
        results.append(json.loads(done.stdout))
    assert results[0]["estimated_peak_memory_bytes"] == pytest.approx(results[1]["peak_memory_bytes"], rel=0.15)


def test_more_is_more(reviews: Path) -> None:
    usual = config(demo_model(), reviews, batch_size=32, method="lora")
    smaller, medium, larger = map(estimated, (replace(usual, batch_size=4), usual, replace(usual, method="full")))
    assert smaller <= medium
    # Gradients and AdamW's two moments of 22.7 million weights.
    assert larger - medium > 3 * 4 * 22e6


def test_the_evaluation_batches_of_most_tokens_and_most_logits_count(small: TrainConfig) -> None:
    job = prepare_job(small, lambda line: None)
    # One long text alone, then many that have the most tokens, then short ones with the longest answers.
    lengths = np.array([900] + [500] * 4 + [10] * 4)
    logits = np.array([10] + [20] * 4 + [batches.MOST_LOGITS // 4] * 4)
    validation = replace(job.validation, inputs={}, lengths=lengths)
    task = SimpleNamespace(logits=lambda base, features: logits)
    batch = partial(dry_run._evaluated, replace(small, eval_batch_size=4))
    assert batch(SimpleNamespace(base=None, task=task, validation=validation)) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    narrow = np.array([batches.MOST_LOGITS] + [1] * 8)
    task = SimpleNamespace(logits=lambda base, features: narrow)
    assert batch(SimpleNamespace(base=None, task=task, validation=validation)) == [[0], [1, 2, 3, 4]]
