"""Tiny models with a task, as opened adapters, and their answers by plain torch."""

from __future__ import annotations

from typing import Any, cast

import torch
from datasets import Dataset

from capaft.config.parts.model import ModelSettings
from capaft.config.train_config import TrainConfig
from capaft.inference.answers import Answerer
from capaft.inference.opened import Opened
from capaft.tasks.base.task import Task
from capaft.training.record.saved_run import SavedRun


def opened(task: Task, model: str, **columns: str) -> Opened:
    """A base model with a task, and the columns of its training if they are known."""
    base = task.load_model(ModelSettings(model=model), seed=0)
    base.model.eval()
    config = TrainConfig(**columns) if columns else None  # type: ignore[arg-type] # all are texts
    saved = SavedRun(cast(Any, None), None, config, task, base, ModelSettings(model=model))
    return Opened(saved, base.model)


def answers(run: Opened, rows: dict[str, list[Any]], **options: Any) -> list[dict[str, Any]]:
    """The answers to a table, by the columns that the task finds in it."""
    table = Dataset.from_dict(rows)
    options = {"batch_size": 4, **options}
    answerer = Answerer(run.task, run.saved.base, run.model, options["batch_size"], options.get("top"))
    return answerer.answer(table, run.task.find_inputs(table, {}))


def logits_of(run: Opened, *texts: str) -> torch.Tensor:
    """The logits of one text or one pair, alone and without padding, in float64, `(outputs,)`."""
    inputs = run.processor(*texts, truncation=True, max_length=run.task.max_length, return_tensors="pt")
    with torch.no_grad():
        return run.model(**inputs).logits[0].double()
