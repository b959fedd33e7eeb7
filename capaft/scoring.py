"""Scoring a saved adapter: on the validation split it was chosen by, or on other data."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from accelerate import Accelerator

from capaft import columns, data, job
from capaft.config import TrainConfig
from capaft.errors import UsageError
from capaft.evaluate import evaluate
from capaft.saved import Saved


def score(
    saved: Saved,
    given: str | None,
    *,
    metric: str | None = None,
    text: str | None = None,
    pair: str | None = None,
    label: str | None = None,
) -> dict[str, Any]:
    """The metric of a saved adapter.

    Args:
        saved: the opened run.
        given: a data set; None for the run's own validation split.
        metric: another metric than the run's.
        text: column of the text; by default the run's, else found by name.
        pair: column of the second text.
        label: column of the label.

    Returns:
        `metric`, `value`, `loss` and `examples`.

    Raises:
        UsageError: there is no data to score on, or it does not fit the task.
    """
    config = saved.config or TrainConfig()
    if given is None:
        if saved.config is None:
            raise UsageError("an adapter file alone does not know its data; pass --data")
        rows = job.load_data(config)["validation"]
    else:
        rows = data.load_evaluation(given)
    own = given is None or given == config.data
    found = columns.recognise(
        rows,
        text=text or (config.text_column if own else None),
        pair=pair or (config.pair_column if own else None),
        label=label or (config.label_column if own else None),
    )
    task = replace(saved.task, metric=metric) if metric else saved.task
    features = task.features(saved.base.tokenizer, rows, found)
    model = saved.model.to(Accelerator().device)
    value, loss = evaluate(task, model, saved.base.tokenizer, features, config.eval_batch_size)
    return {"metric": task.metric, "value": value, "loss": loss, "examples": len(features)}
