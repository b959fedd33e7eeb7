"""The settings of a job with every open choice filled in: they prepare the same job again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_job import bert, config
from transformers import BertForSequenceClassification

from capaft.config.train_config import TrainConfig
from capaft.training.setup.job import Job
from capaft.training.setup.prepare import prepare_job
from capaft.training.setup.settled import settled_config


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bert(tmp_path_factory.mktemp("model"), BertForSequenceClassification)


def settled(settings: TrainConfig) -> tuple[Job, TrainConfig]:
    job = prepare_job(settings, lambda line: None)
    return job, settled_config(settings, job)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"epochs": None, "baseline": None},
        {"method": "lora+nola", "budget": 500, "k": None},
        {"method": "capaboost", "k": None, "copies": 3},
        {"method": "houlsby", "k": None, "rank": None, "bottleneck": 4},
        {"method": "full", "k": None, "rank": None},
    ],
)
def test_settled_settings_settle_to_themselves(changes: dict[str, Any], small: Path, reviews: Path) -> None:
    job, first = settled(config(small, reviews, **changes))
    again, second = settled(first)
    assert second == first
    assert (again.adapter_parameters, again.rates) == (job.adapter_parameters, job.rates)


def test_every_open_choice_is_filled_in(small: Path, reviews: Path) -> None:
    job, chosen = settled(config(small, reviews, method="nola", budget=500, k=None, epochs=None, max_length=None))
    assert (chosen.task, chosen.method, chosen.metric) == ("text-classification", "lora+nola", "accuracy")
    assert (chosen.text_column, chosen.label_column, chosen.problem) == ("text", "label", "single")
    assert (chosen.epochs, chosen.lr, chosen.head_lr) == (job.rates.epochs, job.rates.lr, job.rates.head_lr)
    assert chosen.max_length == 128
    assert chosen.budget is None
    # Two factors of four sites share the budget.
    assert chosen.k == (62, 62)
    assert chosen.target_modules == job.plan.targets.modules
