"""Scores of a model on a data set, in training and afterwards alike, so that both are the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from capaft.model.load import BaseModel
from capaft.model.weights import device_of
from capaft.tasks.base.features import Batch, Features
from capaft.tasks.base.task import Task
from capaft.tasks.base.uncertainty import Interval, score_interval
from capaft.training import batches
from capaft.training.fitting_batch import FittingBatch
from capaft.training.parallel.processes import Processes
from capaft.training.parallel.sharding import is_sharded


@dataclass(frozen=True)
class Evaluation:
    """The outcome of an evaluation.

    Attributes:
        scores: all of the task's scores by name, and `loss`.
        predictions: the task's predictions, in the order of the features.
        interval: that of the task's metric; None if there is none.
    """

    scores: dict[str, float]
    predictions: Sequence[Any]
    interval: Interval | None = None


class EvaluationStopped(Exception):  # noqa: N818 - a request is not an error
    """An evaluation was asked to stop between two batches."""


def evaluate(
    task: Task,
    base: BaseModel,
    model: nn.Module,
    features: Features,
    batch_size: int,
    *,
    processes: Processes,
    fitting: FittingBatch | None = None,
    autocast: AbstractContextManager[Any] | None = None,
    interrupted: Callable[[], bool] | None = None,
    advance: Callable[[int], None] = lambda examples: None,
) -> Evaluation:
    """All scores of a model over a data set, and the mean loss of its terms.

    Args:
        task: the task.
        base: the base model, whose processor pads the batches.
        model: the model to call, on the device it runs on; the training mode of its modules is restored.
        features: the examples, with references.
        batch_size: features in a forward at most; fewer where they would make too many logits.
        processes: the processes that share the work; each returns the whole.
        fitting: what earlier evaluations found to fit into memory.
        autocast: the context that forwards run in.
        advance: called with the number of features that all processes have just done.
        interrupted: asked before each batch; if True in any process, all of them stop.

    Raises:
        TrainingError: the loss is not finite, so no score means anything; or memory ran out with a single feature.
        EvaluationStopped: a process was interrupted.
    """
    device = device_of(model)
    in_training = [module for module in model.modules() if module.training]
    model.eval()
    predicted: list[tuple[int, Any]] = []
    total = terms = 0.0

    def forward(indices: Sequence[int]) -> tuple[float, int, list[Any]]:
        batch = move_batch(task.collate(base, features, indices, training=False), device)
        loss, predictions = task.evaluate_batch(base, model, features, indices, batch)
        return float(loss), batch.terms, predictions

    fitting = fitting or FittingBatch()
    try:
        with torch.inference_mode(), autocast or nullcontext():
            for batch, is_own in _share(features, batch_size, processes, task.logits(base, features)):
                if interrupted and any(processes.totals(interrupted())):
                    raise EvaluationStopped
                # The processes of a sharded model would wait for the forward that one of them broke off.
                parts = [(batch, forward(batch))] if is_sharded(model) else fitting.in_parts(batch, forward)
                # Predictions may take forwards of their own, so they are made even where they do not count.
                for indices, (loss, counted, predictions) in parts:
                    total += loss if is_own else 0.0
                    terms += counted if is_own else 0
                    predicted += zip(indices, predictions, strict=True) if is_own else ()
                    advance(len(indices) * processes.count if is_own else 0)
    finally:
        for module in in_training:
            module.training = True
    fitting.agree(processes)
    # The sums come before the predictions, so that all processes stop here if the loss is not finite.
    total, terms = processes.totals(total, terms)
    if not math.isfinite(total):
        raise processes.failure(
            f"the model's loss on the validation data is {total}: its parameters left the range of floats. Lower --lr; "
            "the best adapter of earlier evaluations, if any, is kept"
        )
    ordered = [prediction for _, prediction in sorted(processes.gather(predicted), key=lambda pair: pair[0])]
    scores = {"loss": total / max(terms, 1.0), **task.score(features, ordered)}
    # Rows without targets have no scores.
    value = scores.get(task.metric, math.nan)
    return Evaluation(scores, ordered, score_interval(task, features, ordered, value))


def _share(
    features: Features, batch_size: int, processes: Processes, logits: NDArray[np.int64] | None
) -> list[tuple[list[int], bool]]:
    """One process's batches; where others have one more, the last again, not to be counted.

    The forwards of a sharded model wait for one another, so all processes make equally many.
    """
    all_batches = batches.evaluation_batches(features.lengths, batch_size, logits)
    share = [(indices, True) for indices in all_batches[processes.rank :: processes.count]]
    missing = -(-len(all_batches) // processes.count) - len(share)
    return share + [(all_batches[-1], False)] * missing


def move_batch(batch: Batch, device: torch.device) -> Batch:
    """The batch, moved to a device."""
    inputs = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.inputs.items()}
    targets = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.targets.items()}
    return Batch(inputs, targets, batch.terms)
