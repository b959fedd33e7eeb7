"""Precision and trackers: those available work, others are refused in one line."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import invoke
from tiny_job import bert, command, config, execute, fresh_accelerate, losses, records
from transformers import BertForSequenceClassification

from capaft.config.train_config import TrainConfig
from capaft.support.errors import UsageError
from capaft.training import optimizer, validation
from capaft.training.accelerator import accelerator_for


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(validation, "draw_losses", lambda *_: b"")
    fresh_accelerate()
    yield
    fresh_accelerate()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bert(tmp_path_factory.mktemp("models") / "bert", BertForSequenceClassification)


def refused(**settings: object) -> str:
    with pytest.raises(UsageError) as error:
        accelerator_for(TrainConfig(**settings))  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is an accelerator")
def test_fp16_is_not_for_the_cpu() -> None:
    assert refused(precision="fp16") == "--precision fp16 needs an accelerator; choose bf16 or fp32"
    expected = "--base-dtype float16 needs an accelerator; choose bfloat16 or float32"
    assert refused(base_dtype="float16", precision="bf16") == expected


def test_a_tracker_that_nobody_knows() -> None:
    assert "--tracker tensorbored: no tracker is called that; choose from " in refused(tracker=("tensorbored",))


def test_a_tracker_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate import tracking

    monkeypatch.setattr(tracking, "get_available_trackers", list)
    assert refused(tracker=("wandb",)) == "--tracker wandb needs its package; pip install wandb"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"optimizer": "adamw-8bit"},
            "--optimizer adamw-8bit needs the package bitsandbytes; pip install bitsandbytes",
        ),
        (
            {"gradient_checkpointing": True},
            "--gradient-checkpointing is not supported by BertForSequenceClassification",
        ),
        ({"precision": "fp16"}, "--precision fp16 needs an accelerator"),
        ({"tracker": ("abacus",)}, "--tracker abacus: no tracker is called that"),
    ],
)
def test_what_cannot_be_had_is_told_before_a_run_is_replaced(
    changes: dict[str, Any], says: str, model: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BertForSequenceClassification, "supports_gradient_checkpointing", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(optimizer, "find_spec", lambda name: None)
    for name in ("run.yaml", "adapter.safetensors"):
        (tmp_path / name).write_text("the work of a week")
    done = invoke(*command(config(model, reviews, overwrite=True, head_init="seeded", **changes), tmp_path))
    assert done.code == 2
    (line,) = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: {says}")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "run.yaml": "the work of a week",
        "adapter.safetensors": "the work of a week",
    }


def test_precision_is_that_of_the_products(model: Path, reviews: Path, tmp_path: Path) -> None:
    """bf16 gives nearly the same losses; trainable parameters and their optimizer stay float32."""
    settings = config(model, reviews, epochs=1)
    execute(settings, tmp_path / "fp32")
    fresh_accelerate()
    seen = []
    real = torch.optim.AdamW.step

    def step(adamw: torch.optim.AdamW, *args: object) -> object:
        seen.extend(p.dtype for group in adamw.param_groups for p in group["params"])
        return real(adamw, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", step)
        execute(settings, tmp_path / "bf16", precision="bf16")
    assert set(seen) == {torch.float32}
    whole, half = ([loss for _, loss in losses(tmp_path / name)] for name in ("fp32", "bf16"))
    assert half == pytest.approx(whole, abs=0.02)
    assert half != whole


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_is_told_what_metrics_jsonl_is(model: Path, reviews: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    execute(config(model, reviews, epochs=1, tracker=("tensorboard",)), tmp_path / "run")
    assert not list(tmp_path.glob("*/*tfevents*")), "events belong under trackers/"
    (events,) = {
        path.parent for path in (tmp_path / "run" / "trackers").rglob("*tfevents*") if path.parent.name == "capaft"
    }
    accumulator = EventAccumulator(str(events)).Reload()
    logged = [(event.step, event.value) for event in accumulator.Scalars("loss")]
    assert logged == [(step, pytest.approx(loss)) for step, loss in losses(tmp_path / "run")]
    (evaluation,) = [record for record in records(tmp_path / "run") if "value" in record]
    (score,) = accumulator.Scalars("accuracy")
    assert (score.step, score.value) == (evaluation["step"], pytest.approx(evaluation["value"]))
    assert "validation_loss" in accumulator.Tags()["scalars"]
