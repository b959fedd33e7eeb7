"""The training loop: one for every method and task, readable from top to bottom. Accelerate does the machinery."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from capaft.adapter.file import save_load
from capaft.adapter.file.save_load import restore_parameters
from capaft.adapter.module import Adapter
from capaft.config.restarts import parse_restarts
from capaft.config.train_config import TrainConfig
from capaft.factors import rng
from capaft.support import strict_json
from capaft.support.errors import Interrupted, UsageError
from capaft.support.files import write_atomically
from capaft.support.signals import interruptible
from capaft.tasks.base.features import Batch
from capaft.tasks.base.uncertainty import Interval
from capaft.training import batches, schedule
from capaft.training.accelerator import move_model, peak_memory
from capaft.training.early_stopping import Best, tells_nothing
from capaft.training.evaluate import Evaluation, EvaluationStopped, evaluate, move_batch
from capaft.training.interrupt import memory_guard
from capaft.training.optimizer import build_optimizer, parameter_groups
from capaft.training.parallel.processes import Processes
from capaft.training.record.best_adapter import keep_last
from capaft.training.record.checkpoint import Checkpoint, Progress, write_checkpoint
from capaft.training.record.journal import Journal
from capaft.training.record.loss_plot import draw_losses, run_caption
from capaft.training.record.next_commands import resume_command
from capaft.training.record.resume import environment, warn_of_other_environment
from capaft.training.trainer import Trainer

# Losses are fetched from the device this many steps at a time, so that it never waits for the host.
FETCH_STEPS = 10
_NO_GRADIENT = (
    "no gradient reaches the adapter: the loss does not depend on the layers that it adapts; choose others with "
    "--target-modules, or another --method"
)


@dataclass(frozen=True)
class Outcome:
    """The end of a run.

    Attributes:
        value: the metric of the saved adapter on validation.
        scores: all its scores.
        interval: the 95 % interval of the metric; None if there is none.
        best_step: optimizer steps after which it was saved.
        seconds: of training, evaluations included.
        examples_per_second: over the same time.
        adapter_bytes: size of the adapter file.
        peak_memory_bytes: highest memory use: of the accelerator, or of the process on a CPU.
        epochs: passes over the data.
        steps: optimizer steps; fewer than planned if no better score came.
        bytes_per_step: gradients that each process sent to the others in a step.
    """

    value: float
    scores: dict[str, float]
    interval: Interval | None
    best_step: int
    seconds: float
    examples_per_second: float
    adapter_bytes: int
    peak_memory_bytes: int
    epochs: float
    steps: int
    bytes_per_step: int


@dataclass(frozen=True)
class _PendingStep:
    """A step whose loss has not been fetched from the device yet."""

    step: int
    epoch: float
    lr: float
    examples: int
    loss: Tensor


def train(run: Trainer, resumed: Checkpoint | None = None) -> Outcome:
    """Train the adapter of a run, and leave the best one in the run's directory.

    Args:
        run: the run, its adapter attached to the job's model.
        resumed: a checkpoint of this run to go on from.

    Raises:
        TrainingError: the loss is not finite, memory or disk ran out; the best adapter so far stays on disk.
        Interrupted: Ctrl-C; a checkpoint, and the best adapter so far or else the present one, are on disk.
    """
    job, config, processes = run.job, run.config, run.processes
    model = move_model(run.model, run.accelerator.device)

    # The plan of the run: how many steps, how fast, when to evaluate.
    per_epoch = math.ceil(len(job.train) / config.batch_size)
    restarts = parse_restarts(config.restarts or ())
    course = schedule.restarted_course(config.schedule, config.warmup, job.rates.steps, restarts)
    restart_steps = {restart.step for restart in restarts}
    evaluate_every = config.eval_steps or config.eval_epochs * per_epoch

    # Its state: parameters, optimizer, progress. All of it is in a checkpoint, so a resumed run starts from the same.
    trained = run.trained
    assert run.adapter is not None
    groups = parameter_groups(run.adapter, model, job.head_names, job.rates, config)
    optimizer = run.accelerator.prepare(build_optimizer(config.optimizer, groups))
    made_with = environment(config, processes)
    progress = Progress(baseline=run.baseline)
    if resumed:
        resumed.restore(trained, optimizer, run.accelerator.scaler)
        progress = resumed.progress
        warn_of_other_environment(resumed.made_with, made_with, run.say)
    journal = _journal(run, progress)
    best, step = progress.best, progress.step
    saved_at = time.monotonic()
    pending: list[_PendingStep] = []

    def keep(*, evaluated: bool = True) -> None:
        """Leave enough on the disk to go on from."""
        nonlocal saved_at
        if processes.is_first:
            journal.keep()
            now = Progress(step, best, journal.seconds, progress.baseline, evaluated)
            state = (trained, optimizer, run.accelerator.scaler)
            checkpoint = Checkpoint.capture(now, *state, made_with, run.made_from)
            write_checkpoint(run.directory.checkpoints, checkpoint)
        saved_at = time.monotonic()

    def after_evaluation() -> Best:
        """The best evaluation so far, with one that takes place now."""
        try:
            after = _after_evaluation(run, journal, best, step, step / per_epoch, interrupted)
        except EvaluationStopped:
            # It is repeated from here.
            keep(evaluated=False)
            raise _stopped(run, journal, best, step) from None
        return _waiting_anew(after) if step in restart_steps else after

    with journal, interruptible() as interrupted, memory_guard():
        model.train()
        best = _waiting_anew(best) if step in restart_steps else best
        if not progress.evaluated:
            best = after_evaluation()
            keep()
        while step < job.rates.steps and not _waited_enough(best, config):
            # One optimizer step: its batch, cut into micro-batches; its gradients; the update.
            epoch, position = divmod(step, per_epoch)
            if position == 0 or step == progress.step:
                order = batches.training_batches(job.train.lengths, config.batch_size, config.seed, epoch)
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * course(step)
            micro_batches = _collated(run, order[position], step)
            terms = sum(batch.terms for batch, is_own in micro_batches if is_own)
            is_due = processes.is_first and time.monotonic() - saved_at >= config.checkpoint_seconds
            # All processes stop, and write, at the same step.
            all_terms, stop, due = processes.totals(terms, interrupted(), is_due)
            loss = _backward(run, micro_batches, all_terms, step)
            if step == progress.step:
                _check_gradients(run.adapter)
            processes.add_up(list(trained.values()))
            if config.clip:
                run.accelerator.clip_grad_norm_(list(trained.values()), config.clip)
            lr = float(optimizer.param_groups[0]["lr"])
            optimizer.step()
            optimizer.zero_grad()
            step += 1

            # The record: losses now and then, scores when it is time to evaluate.
            pending.append(_PendingStep(step, step / per_epoch, lr, len(order[position]), loss))
            evaluates = step % evaluate_every == 0 or step == job.rates.steps or step in restart_steps
            if len(pending) == FETCH_STEPS or evaluates or stop or due:
                _report(journal, pending, processes)
            if evaluates:
                best = after_evaluation()

            # The files: enough to go on from, at every evaluation, now and then, and before stopping.
            if evaluates or due or stop:
                keep()
            if stop and step < job.rates.steps:
                raise _stopped(run, journal, best, step)
        seconds, speed = journal.seconds, journal.examples_per_second

    scores, interval = best.scores, best.interval
    if config.save_dtype != "float32":
        with interruptible() as interrupted, memory_guard():
            try:
                as_saved = _evaluated_as_saved(run, interrupted)
            except EvaluationStopped:
                raise _stopped(run, journal, best, step) from None
        scores, interval = as_saved.scores, as_saved.interval
    return Outcome(
        value=scores[job.task.metric],
        scores=scores,
        interval=interval,
        best_step=best.step,
        seconds=seconds,
        examples_per_second=speed,
        adapter_bytes=run.directory.adapter.stat().st_size if processes.is_first else 0,
        peak_memory_bytes=peak_memory(),
        epochs=step / per_epoch,
        steps=step,
        bytes_per_step=processes.bytes_sent // max(1, step - progress.step),
    )


def _journal(run: Trainer, progress: Progress) -> Journal:
    """The journal, which goes on after the steps that are done."""
    return Journal(
        run.console,
        run.directory.metrics,
        run.job.rates.steps,
        done=progress.step,
        seconds=progress.seconds,
        quiet=not run.processes.is_first,
        track=(lambda values, step: run.accelerator.log(values, step=step)) if run.config.tracker else None,
    )


def _collated(run: Trainer, indices: Sequence[int], step: int) -> list[tuple[Batch, bool]]:
    """One process's micro-batches of a batch, and whether each counts or only keeps step with other processes'."""
    job, config, processes = run.job, run.config, run.processes
    collated = []
    parts = batches.micro_batches(indices, processes.rank, processes.count, config.micro_batch_size)
    for number, (part, is_own) in enumerate(parts):
        torch.manual_seed(_seed(config.seed, "collate", step, processes.rank, number))
        collated.append((job.task.collate(job.base, job.train, part, training=True), is_own))
    return collated


def _backward(run: Trainer, micro_batches: Sequence[tuple[Batch, bool]], terms: float, step: int) -> Tensor:
    """One process's part of the gradients of a batch's mean loss, and of that loss itself.

    Each micro-batch's sum is divided by the terms of the whole batch, over all processes: then the gradients add up to
    those of the big batch exactly, however it is cut and however its terms are spread.
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


def _seed(seed: int, purpose: str, step: int, rank: int, number: int) -> int:
    """The seed of torch's generator for one micro-batch of one process."""
    key = rng.fold_in(seed, "", "train", f"{purpose}.{step}.{rank}.{number}")
    return int(rng.words(key, 1)[0] >> 1)


def _waited_enough(best: Best, config: TrainConfig) -> bool:
    return config.patience is not None and best.waited >= config.patience


def _waiting_anew(best: Best) -> Best:
    """The best evaluation so far, with the whole patience for a better one."""
    return replace(best, waited=0)


def _report(journal: Journal, pending: list[_PendingStep], processes: Processes) -> None:
    """Fetch the losses of the steps just done and record them; stop if one is not finite."""
    losses = processes.sum_of(torch.stack([done.loss for done in pending])).tolist()
    for done, loss in zip(pending, losses, strict=True):
        if not math.isfinite(loss):
            raise processes.failure(
                f"the loss is {loss} at step {done.step} (learning rate {done.lr:.1e}); lower --lr. "
                "The best adapter of earlier evaluations, if any, is kept"
            )
        journal.step(done.step, done.epoch, loss, done.lr, done.examples)
    pending.clear()


def _stopped(run: Trainer, journal: Journal, best: Best, step: int) -> Interrupted:
    """The end of a run that was asked to stop, once it can be resumed."""
    if best.value is None:
        journal.check_in_place()
        _save(run, run.directory.adapter)
    _plot(run, journal)
    resume = resume_command(str(run.directory.path))
    return Interrupted(f"stopped at step {step} of {run.job.rates.steps}; resume with {resume}")


def _evaluated(
    run: Trainer, interrupted: Callable[[], bool], advance: Callable[[int], None] = lambda examples: None
) -> Evaluation:
    """The scores on the validation split, with the parameters that the adapter has now."""
    job = run.job
    return evaluate(
        job.task,
        job.base,
        job.base.model,
        job.validation,
        run.config.eval_batch_size,
        processes=run.processes,
        fitting=run.fitting,
        autocast=run.accelerator.autocast(),
        interrupted=interrupted,
        advance=advance,
    )


def _check_gradients(adapter: Adapter) -> None:
    """Make sure that the loss depends on an adapter, after the first backward.

    Raises:
        UsageError: no gradient has reached it, as from layers whose output only chooses among others.
    """
    parameters = list(adapter.role_parameters.values())
    if parameters and all(parameter.grad is None for parameter in parameters):
        raise UsageError(_NO_GRADIENT)


def _after_evaluation(
    run: Trainer, journal: Journal, best: Best, step: int, epoch: float, interrupted: Callable[[], bool]
) -> Best:
    """Evaluate, record the scores, and save the adapter; the best evaluation so far, this one included."""
    task = run.job.task
    evaluation = _evaluated(run, interrupted, journal.evaluating(len(run.job.validation)))
    value, scores, interval = evaluation.scores[task.metric], evaluation.scores, evaluation.interval
    more, worst = task.more_is_better, task.worst_score
    best = best.after(
        step, value, scores, more_is_better=more, min_delta=run.config.min_delta, worst=worst, interval=interval
    )
    is_best = best.step == step
    journal.check_in_place()
    _save(run, run.directory.last)
    if run.processes.is_first:
        best = keep_last(run.directory, best, is_best=is_best)
    if is_best:
        _write_predictions(run, evaluation.predictions)
    by_loss = tells_nothing(value, worst, more)
    shown = task.score_name(task.metric)
    journal.evaluation(step, epoch, task.metric, scores, is_best, shown=shown, by_loss=by_loss, interval=interval)
    _plot(run, journal)
    return best


def _save(run: Trainer, path: Path) -> None:
    """Write the adapter as it is now; the first process does."""
    if run.processes.is_first:
        record, dtype = run.job.record, run.config.save_dtype
        save_load.save(run.model, path, base=run.job.base.base, task=record, dtype=dtype, samples=run.samples)


def _plot(run: Trainer, journal: Journal) -> None:
    if run.processes.is_first:
        picture = draw_losses(journal.records, run.job.task.metric, run_caption(run))
        write_atomically(run.directory.plot, picture, make_parents=False)


def _write_predictions(run: Trainer, predictions: Sequence[Any]) -> None:
    """Write the task's report of its predictions, one JSON record a line."""
    if run.processes.is_first and (records := run.job.task.report(run.job.validation, predictions)):
        write_atomically(run.directory.predictions, strict_json.lines(records), make_parents=False)


def _evaluated_as_saved(run: Trainer, interrupted: Callable[[], bool]) -> Evaluation:
    """The scores of the rounded parameters in the file, which users will get."""
    run.processes.totals(0)  # The first process may still be writing the file.
    restore_parameters(run.model, run.directory.adapter)
    evaluation = _evaluated(run, interrupted)
    _write_predictions(run, evaluation.predictions)
    return evaluation
