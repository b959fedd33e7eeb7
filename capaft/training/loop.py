"""The training loop: one for every method and task, readable from top to bottom. Accelerate does the machinery."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console
from torch import Tensor, nn

from capaft.adapter.file import save_load
from capaft.adapter.file.fingerprint import WeightSamples
from capaft.adapter.file.save_load import restore_parameters
from capaft.adapter.module import Adapter
from capaft.config.train_config import TrainConfig
from capaft.factors import rng
from capaft.support import strict_json
from capaft.support.errors import Interrupted
from capaft.support.files import write_atomically
from capaft.tasks.base.features import Batch
from capaft.training import batches, schedule
from capaft.training.accelerator import accelerator_for, move_model, peak_memory
from capaft.training.early_stopping import Best
from capaft.training.evaluate import Evaluation, evaluate, move_batch
from capaft.training.interrupt import interruptible, memory_guard
from capaft.training.optimizer import build_optimizer, parameter_groups
from capaft.training.parallel.processes import Processes
from capaft.training.record.checkpoint import Checkpoint, Progress, write_checkpoint
from capaft.training.record.journal import Journal
from capaft.training.record.loss_plot import draw_losses
from capaft.training.record.resume import environment, warn_of_other_environment
from capaft.training.record.run_directory import RunDirectory
from capaft.training.setup.job import Job

# Losses are fetched from the device this many steps at a time, so that it never waits for the host.
FETCH_STEPS = 10


@dataclass(frozen=True)
class Outcome:
    """What a finished run came to.

    Attributes:
        value: the metric of the saved adapter on validation.
        scores: all its scores.
        best_step: optimiser steps after which it was saved.
        seconds: of training, evaluations included.
        examples_per_second: over the same time.
        adapter_bytes: size of the adapter file.
        peak_memory_bytes: highest memory use: of the accelerator, or of the process on a CPU.
        epochs: passes over the data.
        steps: optimiser steps; fewer than planned if no better score came.
        processes: how many trained.
        bytes_per_step: gradients that each process sent to the others in a step.
    """

    value: float
    scores: dict[str, float]
    best_step: int
    seconds: float
    examples_per_second: float
    adapter_bytes: int
    peak_memory_bytes: int
    epochs: float
    steps: int
    processes: int
    bytes_per_step: int


def train(
    job: Job,
    adapter: Adapter,
    config: TrainConfig,
    run: RunDirectory,
    console: Console,
    *,
    accelerator: Accelerator | None = None,
    processes: Processes | None = None,
    resumed: Checkpoint | None = None,
    baseline: float | None = None,
    samples: WeightSamples | None = None,
    made_from: dict[str, str] | None = None,
) -> Outcome:
    """Train an adapter that is attached to the job's model, and leave the best one in the run's directory.

    Args:
        job: what to train on.
        adapter: attached to the job's model, which is where it should be trained.
        config: the resolved configuration.
        run: the run's directory.
        console: where people read.
        accelerator: precision, loss scaling and trackers.
        processes: those that train together.
        resumed: a checkpoint of this run to go on from.
        baseline: kept in checkpoints.
        samples: of the base model, where it lies in shares; see `save`.
        made_from: kept in checkpoints; see `made_from`.

    Raises:
        TrainingError: the loss is not finite, memory or disk ran out; the best adapter so far stays on disk.
        Interrupted: Ctrl-C; a checkpoint, and the best adapter so far or else the present one, are on disk.
    """
    accelerator, processes = accelerator or accelerator_for(config), processes or Processes.here()
    model: nn.Module = move_model(job.base.model, accelerator.device)
    per_epoch = math.ceil(len(job.train) / config.batch_size)
    course = schedule.course(config.schedule, schedule.warmup_steps(config.warmup, job.steps), job.steps)
    evaluate_every = config.eval_steps or config.eval_epochs * per_epoch
    trained = adapter.trained(model)
    groups = parameter_groups(adapter, model, job.head_names, job.lr, job.head_lr, config)
    optimizer = accelerator.prepare(build_optimizer(config.optimizer, groups))
    made_with = environment(config, processes)
    progress = Progress(baseline=baseline)
    if resumed:
        resumed.restore(trained, optimizer, accelerator.scaler)
        progress = resumed.progress
        warn_of_other_environment(
            resumed.made_with,
            made_with,
            lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True),
        )
    journal = Journal(
        console,
        run.metrics,
        job.steps,
        done=progress.step,
        seconds=progress.seconds,
        quiet=not processes.is_first,
        track=(lambda values, step: accelerator.log(values, step=step)) if config.tracker else None,
    )
    best, step = progress.best, progress.step
    saved_at = time.monotonic()
    pending: list[tuple[int, float, float, int, Tensor]] = []

    def leave_checkpoint() -> None:
        nonlocal saved_at
        if processes.is_first:
            journal.keep()
            now = Progress(step, best, journal.seconds, baseline)
            write_checkpoint(run.checkpoints, now, trained, optimizer, accelerator.scaler, made_with, made_from or {})
        saved_at = time.monotonic()

    def save(path: Any) -> None:
        if processes.is_first:
            save_load.save(model, path, base=job.base.base, task=job.record, dtype=config.save_dtype, samples=samples)

    def plot() -> None:
        if processes.is_first:
            write_atomically(run.plot, draw_losses(journal.records, job.task.metric))

    with journal, interruptible() as interrupted, memory_guard():
        set_training_mode(model)
        while step < job.steps and not _waited_enough(best, config):
            epoch, position = divmod(step, per_epoch)
            if position == 0 or step == progress.step:
                order = batches.training_batches(job.train.lengths, config.batch_size, config.seed, epoch)
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * course(step)
            micro_batches = _collated(job, order[position], step, config, processes)
            counted = sum(batch.terms for batch, is_own in micro_batches if is_own)
            is_due = processes.is_first and time.monotonic() - saved_at >= config.checkpoint_seconds
            # All processes stop, and write, at the same step.
            terms, stop, due = processes.totals(counted, interrupted(), is_due)
            loss = _backward(job, model, micro_batches, terms, step, config, accelerator, processes)
            processes.add_up(list(trained.values()))
            if config.clip:
                accelerator.clip_grad_norm_(list(trained.values()), config.clip)
            lr = float(optimizer.param_groups[0]["lr"])
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            pending.append((step, step / per_epoch, lr, len(order[position]), loss))
            evaluates = step % evaluate_every == 0 or step == job.steps
            if len(pending) == FETCH_STEPS or evaluates or stop or due:
                _report(journal, pending, processes)
            if evaluates:
                found = _evaluated(job, config, accelerator, processes)
                value = found.scores[job.task.metric]
                best = best.after(
                    step, value, found.scores, more_is_better=job.task.more_is_better, min_delta=config.min_delta
                )
                if best.step == step:
                    save(run.adapter)
                    _write_predictions(job, found.predictions, run, processes)
                save(run.last)
                journal.evaluation(step, step / per_epoch, job.task.metric, found.scores, best.step == step)
                plot()
            if evaluates or due or stop:
                leave_checkpoint()
            if stop and step < job.steps:
                if best.value is None:
                    save(run.adapter)
                plot()
                raise Interrupted(f"stopped at step {step} of {job.steps}; go on with --resume --output {run.path}")
        seconds, speed = journal.seconds, journal.examples_per_second
    scores = best.scores
    if config.save_dtype != "float32":
        with memory_guard():
            scores = _scores_as_saved(job, run, config, accelerator, processes)
    return Outcome(
        value=scores[job.task.metric],
        scores=scores,
        best_step=best.step,
        seconds=seconds,
        examples_per_second=speed,
        adapter_bytes=run.adapter.stat().st_size if processes.is_first else 0,
        peak_memory_bytes=peak_memory(),
        epochs=step / per_epoch,
        steps=step,
        processes=processes.count,
        bytes_per_step=processes.bytes_sent // max(1, step - progress.step),
    )


def set_training_mode(model: nn.Module) -> None:
    """Training mode, but for layers that would go on averaging what they see: no adapter file holds their averages."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def _collated(
    job: Job, indices: Sequence[int], step: int, config: TrainConfig, processes: Processes
) -> list[tuple[Batch, bool]]:
    """One process's micro-batches of a batch, and whether each counts or only keeps step with other processes'."""
    found = []
    parts = batches.micro_batches(indices, processes.rank, processes.count, config.micro_batch_size)
    for number, (part, is_own) in enumerate(parts):
        torch.manual_seed(_seed(config.seed, "collate", step, processes.rank, number))
        found.append((job.task.collate(job.base, job.train, part, training=True), is_own))
    return found


def _backward(
    job: Job,
    model: nn.Module,
    micro_batches: Sequence[tuple[Batch, bool]],
    terms: float,
    step: int,
    config: TrainConfig,
    accelerator: Accelerator,
    processes: Processes,
) -> Tensor:
    """One process's part of the gradients of a batch's mean loss, and of that loss itself.

    Each micro-batch's sum is divided by the terms of the whole batch, over all processes: then the gradients add up to
    those of the big batch exactly, however it is cut and however its terms are spread.
    """
    total = torch.zeros((), device=accelerator.device)
    for number, (batch, is_own) in enumerate(micro_batches):
        torch.manual_seed(_seed(config.seed, "dropout", step, processes.rank, number))
        moved = move_batch(batch, accelerator.device)
        with accelerator.autocast():
            outputs = model(**moved.inputs)
        loss = job.task.loss(outputs, moved.targets, config.label_smoothing) / max(terms, 1.0)
        del outputs  # Logits of a large vocabulary need not outlive the loss.
        accelerator.backward(loss if is_own else loss * 0)
        total += loss.detach() if is_own else 0
    return total


def _seed(seed: int, purpose: str, step: int, rank: int, number: int) -> int:
    """What torch's generator starts from for one micro-batch of one process."""
    key = rng.fold_in(seed, "", "train", f"{purpose}.{step}.{rank}.{number}")
    return int(rng.words(key, 1)[0] >> 1)


def _waited_enough(best: Best, config: TrainConfig) -> bool:
    return config.patience is not None and best.waited >= config.patience


def _report(journal: Journal, pending: list[tuple[int, float, float, int, Tensor]], processes: Processes) -> None:
    """Fetch the losses of the steps just done and record them; stop if one is not finite."""
    losses = processes.sum_of(torch.stack([loss for *_, loss in pending])).tolist()
    for (step, epoch, lr, examples, _), loss in zip(pending, losses, strict=True):
        if not math.isfinite(loss):
            raise processes.failure(
                f"the loss is {loss} at step {step} (learning rate {lr:.1e}); lower --lr. "
                "The best adapter of earlier evaluations, if any, is kept"
            )
        journal.step(step, epoch, loss, lr, examples)
    pending.clear()


def _evaluated(job: Job, config: TrainConfig, accelerator: Accelerator, processes: Processes) -> Evaluation:
    """The validation split, scored with the numbers that the adapter has now."""
    return evaluate(
        job.task,
        job.base,
        job.base.model,
        job.validation,
        config.eval_batch_size,
        processes=processes,
        autocast=accelerator.autocast(),
    )


def _write_predictions(job: Job, predictions: Sequence[Any], run: RunDirectory, processes: Processes) -> None:
    """What the task says of its predictions, one JSON record a line."""
    if processes.is_first and (records := job.task.report(job.validation, predictions)):
        write_atomically(run.predictions, strict_json.lines(records))


def _scores_as_saved(
    job: Job, run: RunDirectory, config: TrainConfig, accelerator: Accelerator, processes: Processes
) -> dict[str, float]:
    """The scores of the rounded numbers in the file, which is what users will get."""
    processes.totals(0)  # The first process may still be writing the file.
    restore_parameters(job.base.model, run.adapter)
    found = _evaluated(job, config, accelerator, processes)
    _write_predictions(job, found.predictions, run, processes)
    return found.scores
