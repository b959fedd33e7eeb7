"""The loop itself: what it trains, how fast it learns to, and what it leaves alone."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from rich.console import Console

from capaft import job, run_directory, train
from capaft.attach import attach_plan, get
from capaft.config import TrainConfig


def config(reviews: Path, **changes: object) -> TrainConfig:
    small = {"epochs": 1, "batch_size": 8, "k": (16,), "rank": 2, "max_length": 16, "baseline": False}
    return TrainConfig(data=str(reviews), **{**small, **changes})  # type: ignore[arg-type]


def run(settings: TrainConfig, directory: Path) -> tuple[job.Job, train.Outcome, list[dict]]:
    decided = job.prepare(settings, lambda line: None)
    place = run_directory.RunDirectory(directory)
    run_directory.clear(place)
    adapter = attach_plan(decided.base.model, decided.plan)
    outcome = train.train(decided, adapter, settings, place, Console(stderr=True, quiet=True))
    return decided, outcome, [json.loads(line) for line in place.metrics.read_text().splitlines()]


@pytest.mark.parametrize("method", ["nola", "lora", "capaboost"])
def test_the_base_stays_as_it_was_and_holds_no_gradient(method: str, reviews: Path, tmp_path: Path) -> None:
    settings = config(reviews, method=method)
    before = {k: v.clone() for k, v in job.prepare(settings, lambda line: None).base.named_parameters().items()}
    decided, _, _ = run(settings, tmp_path)
    for name, parameter in decided.base.named_parameters().items():
        if name in decided.base.head or "capaft" in name:
            continue
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None
        assert not parameter.requires_grad


def test_the_optimiser_holds_the_trained_numbers_and_nothing_else(reviews: Path, tmp_path: Path) -> None:
    settings = config(reviews, head_lr=1e-3, weight_decay=0.1, method="lora")
    decided, _, _ = run(settings, tmp_path)
    adapter = get(decided.base.model)
    groups = train._groups(decided, adapter, decided.base.model, settings)
    held = sum(p.numel() for group in groups for p in group["params"])
    assert held == decided.adapter_numbers + decided.own_numbers
    by_id = {id(p): group for group in groups for p in group["params"]}
    trained = adapter.trained(decided.base.model)
    assert by_id[id(trained["down"])]["weight_decay"] == 0.1
    assert by_id[id(trained["head:classifier.weight"])]["lr"] == 1e-3
    assert by_id[id(trained["head:classifier.bias"])]["weight_decay"] == 0.0


def test_coefficients_are_not_decayed(reviews: Path, tmp_path: Path) -> None:
    settings = config(reviews, weight_decay=0.1)
    decided, _, _ = run(settings, tmp_path)
    adapter = get(decided.base.model)
    groups = train._groups(decided, adapter, decided.base.model, settings)
    numbers = {id(p) for p in adapter.numbers.values()}
    assert {g["weight_decay"] for g in groups for p in g["params"] if id(p) in numbers} == {0.0}


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_schedules(schedule: str) -> None:
    settings = TrainConfig(schedule=schedule, warmup=0.1)  # type: ignore[arg-type]
    course = [train._course(step, 100, settings) for step in range(100)]
    assert course[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    done = [(i - 10) / 90 for i in range(10, 100)]
    expected = {
        "linear": [1 - d for d in done],
        "cosine": [(1 + math.cos(math.pi * d)) / 2 for d in done],
        "constant": [1.0] * 90,
    }[schedule]
    assert course[10:] == pytest.approx(expected)


def test_training_does_not_depend_on_global_generators(reviews: Path, tmp_path: Path) -> None:
    files = []
    for index in range(2):
        torch.manual_seed(index)
        run(config(reviews), tmp_path / str(index))
        files.append((tmp_path / str(index) / "adapter.safetensors").read_bytes())
    assert files[0] == files[1]
    run(config(reviews, seed=1), tmp_path / "other")
    assert (tmp_path / "other" / "adapter.safetensors").read_bytes() != files[0]


def test_the_loss_falls_and_every_step_is_recorded(reviews: Path, tmp_path: Path) -> None:
    _, outcome, records = run(config(reviews, epochs=6, head_init="seeded", lr=5e-2, head_lr=1e-2), tmp_path)
    losses = [r["loss"] for r in records if "loss" in r]
    assert len(losses) == outcome.steps == 6 * 8
    assert sum(losses[-8:]) < 0.7 * sum(losses[:8])
    assert outcome.peak_memory_bytes > 2**20
    assert {"step", "epoch", "lr", "examples_per_second", "seconds_left"} <= records[0].keys()


def test_the_best_adapter_is_the_one_kept(reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter([(0.5, 1.0), (0.9, 1.0), (0.7, 1.0)])
    kept = []
    real = train.adapter_file.save

    def save(*args: object, **kwargs: object) -> int:
        kept.append(1)
        return real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(train, "evaluate", lambda *args: next(values))
    monkeypatch.setattr(train.adapter_file, "save", save)
    _, outcome, _ = run(config(reviews, epochs=3), tmp_path)
    assert outcome.value == 0.9
    assert len(kept) == 2
