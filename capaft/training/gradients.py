"""The gradients of one optimizer step, from the micro-batches of one process."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from capaft.adapter.module import Adapter
from capaft.factors import rng
from capaft.support.errors import UsageError
from capaft.tasks.base.features import Batch
from capaft.training import batches
from capaft.training.evaluate import move_batch
from capaft.training.trainer import Trainer

_NO_GRADIENT = (
    "no gradient reaches the adapter: the loss does not depend on the layers that it adapts; choose others with "
    "--target-modules, or another --method"
)


def collate_share(run: Trainer, indices: Sequence[int], step: int) -> list[tuple[Batch, bool]]:
    """One process's micro-batches of a batch, and whether each counts or only keeps step with other processes'."""
    job, config, processes = run.job, run.config, run.processes
    collated = []
    parts = batches.micro_batches(indices, processes.rank, processes.count, config.micro_batch_size)
    for number, (part, is_own) in enumerate(parts):
        torch.manual_seed(_seed(config.seed, "collate", step, processes.rank, number))
        collated.append((job.task.collate(job.base, job.train, part, training=True), is_own))
    return collated


def backward(run: Trainer, micro_batches: Sequence[tuple[Batch, bool]], terms: float, step: int) -> Tensor:
    """One process's part of the gradients of a batch's mean loss, and of that loss itself.

    Each micro-batch's sum is divided by the terms of the whole batch, over all processes: then the gradients add up to
    those of the big batch exactly, however it is cut and however its terms are spread.

    Raises:
        UsageError: no gradient can reach the adapter.
    """
    job, config, accelerator = run.job, run.config, run.accelerator
    total = torch.zeros((), dtype=torch.float32, device=accelerator.device)
    for number, (batch, is_own) in enumerate(micro_batches):
        torch.manual_seed(_seed(config.seed, "dropout", step, run.processes.rank, number))
        moved = move_batch(batch, accelerator.device)
        with accelerator.autocast():
            outputs = run.model(**moved.inputs)
        loss = job.task.loss(outputs, moved.targets, config.label_smoothing) / max(terms, 1.0)
        if not loss.requires_grad:
            raise UsageError(_NO_GRADIENT)
        del outputs  # Logits of a large vocabulary need not outlive the loss.
        accelerator.backward(loss if is_own else loss * 0)
        total += loss.detach() if is_own else 0
    return total


def check_gradients(adapter: Adapter) -> None:
    """Make sure that the loss depends on an adapter, after the first backward.

    Raises:
        UsageError: no gradient has reached it, as from layers whose output only chooses among others.
    """
    parameters = list(adapter.role_parameters.values())
    if parameters and all(parameter.grad is None for parameter in parameters):
        raise UsageError(_NO_GRADIENT)


def _seed(seed: int, purpose: str, step: int, rank: int, number: int) -> int:
    """The seed of torch's generator for one micro-batch of one process."""
    key = rng.fold_in(seed, "", "train", f"{purpose}.{step}.{rank}.{number}")
    return int(rng.words(key, 1)[0] >> 1)
