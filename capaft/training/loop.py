"""The training loop: one for every method and task, readable from top to bottom. Accelerate does the machinery."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from capaft.config.restarts import parse_restarts
from capaft.config.train_config import TrainConfig
from capaft.support.errors import Interrupted
from capaft.support.signals import interruptible
from capaft.training import batches, schedule
from capaft.training.accelerator import move_model, peak_memory
from capaft.training.early_stopping import Best
from capaft.training.evaluate import Evaluation, EvaluationStopped
from capaft.training.gradients import backward, check_gradients, collate_share
from capaft.training.memory_guard import memory_guard
from capaft.training.optimizer import build_optimizer, parameter_groups
from capaft.training.outcome import Outcome
from capaft.training.parallel.processes import Processes
from capaft.training.record.checkpoint import Checkpoint, Progress, write_checkpoint
from capaft.training.record.journal import Journal
from capaft.training.record.next_commands import command_to_resume
from capaft.training.record.resume import environment, warn_of_other_environment
from capaft.training.trainer import Trainer
from capaft.training.validation import draw_plot, evaluate_and_keep, evaluate_as_saved, save_adapter

# Losses are fetched from the device this many steps at a time, so that it never waits for the host.
FETCH_STEPS = 10


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
            after = evaluate_and_keep(run, journal, best, step, step / per_epoch, interrupted)
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
            micro_batches = collate_share(run, order[position], step)
            terms = sum(batch.terms for batch, is_own in micro_batches if is_own)
            is_due = processes.is_first and time.monotonic() - saved_at >= config.checkpoint_seconds
            # All processes stop, and write, at the same step.
            all_terms, stop, due = processes.totals(terms, interrupted(), is_due)
            loss = backward(run, micro_batches, all_terms, step)
            if step == progress.step:
                check_gradients(run.adapter)
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
        as_saved = _as_saved(run, journal, best, step)
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


def _as_saved(run: Trainer, journal: Journal, best: Best, step: int) -> Evaluation:
    """The scores of the best adapter as its file rounds it.

    Raises:
        Interrupted: the run was asked to stop meanwhile.
    """
    with interruptible() as interrupted, memory_guard():
        try:
            return evaluate_as_saved(run, interrupted)
        except EvaluationStopped:
            raise _stopped(run, journal, best, step) from None


def _journal(run: Trainer, progress: Progress) -> Journal:
    """The journal, which goes on after the steps that are done."""
    return Journal(
        run.console,
        run.directory.metrics,
        run.job.rates.steps,
        done=progress.step,
        seconds=progress.seconds,
        quiet=not run.processes.is_first,
        notify=run.progress,
        track=(lambda values, step: run.accelerator.log(values, step=step)) if run.config.tracker else None,
    )


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
        save_adapter(run, run.directory.adapter)
    draw_plot(run, journal)
    resume = command_to_resume(str(run.directory.path))
    return Interrupted(f"stopped at step {step} of {run.job.rates.steps}; resume with {resume}")
