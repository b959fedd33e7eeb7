"""The estimate of peak memory: near the measured peak, and larger for larger runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_job import bert, config
from transformers import BertForSequenceClassification

from capaft.commands import dry_run
from capaft.config.train_config import TrainConfig
from capaft.model.demo import demo_model
from capaft.training.setup.prepare import prepare_job


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


def test_the_model_stays_as_it_was(small: TrainConfig) -> None:
    job = prepare_job(small, lambda line: None)
    before = {name: tensor.clone() for name, tensor in job.base.model.state_dict().items()}
    dry_run._peak_memory(small, job)
    after = job.base.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_a_model_that_looks_at_its_numbers_cannot_be_told(small: TrainConfig) -> None:
    job = prepare_job(small, lambda line: None)
    classifier = job.base.model.classifier
    classifier.register_forward_hook(lambda module, args, output: output * (2 if output.sum().item() > 0 else 1))
    assert dry_run._peak_memory(small, job) is None
