"""The training loop: one for every method and task, readable from top to bottom. Accelerate does the machinery."""

from __future__ import annotations

import math
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from capaft import adapter_file, batches, rng
from capaft.adapter import Adapter
from capaft.adapter_file import Task
from capaft.config import TrainConfig
from capaft.errors import Interrupted, TrainingError, UsageError
from capaft.evaluate import evaluate
from capaft.files import write_atomically
from capaft.job import Job
from capaft.journal import Journal
from capaft.loss_plot import draw
from capaft.run_directory import RunDirectory

# Losses are fetched from the device this many steps at a time, so that it never waits for the host.
FETCH_STEPS = 10


@dataclass(frozen=True)
class Outcome:
    """What a finished run came to.

    Attributes:
        value: the metric of the saved adapter on validation.
        seconds: of training, evaluations included.
        examples_per_second: over the same time.
        adapter_bytes: size of the adapter file.
        peak_memory_bytes: highest memory use: of the accelerator, or of the process on a CPU.
        epochs: passes over the data.
        steps: optimiser steps.
    """

    value: float
    seconds: float
    examples_per_second: float
    adapter_bytes: int
    peak_memory_bytes: int
    epochs: int
    steps: int


def train(job: Job, adapter: Adapter, config: TrainConfig, run: RunDirectory, console: Console) -> Outcome:
    """Train an adapter that is attached to the job's model, and leave the best one in the run's directory.

    Raises:
        TrainingError: the loss is not finite, memory or disk ran out; the best adapter so far stays on disk.
        Interrupted: Ctrl-C; the best adapter so far, or else the present one, is on disk.
    """
    accelerator = Accelerator()
    if accelerator.num_processes > 1:
        raise UsageError("training runs in one process; start it with `capaft train` and not with a launcher")
    model: nn.Module = job.base.model.to(accelerator.device)
    per_epoch = math.ceil(len(job.train) / config.batch_size)
    steps = job.epochs * per_epoch
    trained = list(adapter.trained(model).values())
    optimizer = torch.optim.AdamW(_groups(job, adapter, model, config), weight_decay=0.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _course(step, steps, config))
    prepared, optimizer = accelerator.prepare(model, optimizer)
    record = Task(job.task.name, job.task.labels, job.task.max_length, job.task.metric)
    if accelerator.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()

    def save() -> int:
        return adapter_file.save(model, run.adapter, base=job.base.base, task=record, dtype=config.save_dtype)

    best, size, step = -math.inf, 0, 0
    pending: list[tuple[int, float, float, int, Tensor]] = []
    with Journal(console, run.metrics, steps) as journal, _interruptible() as interrupted, _memory_guard():
        for epoch in range(job.epochs):
            prepared.train()
            for indices in batches.training(job.train.lengths, config.batch_size, config.seed, epoch):
                torch.manual_seed(_dropout_seed(config.seed, step))
                batch = job.task.collate(job.base.tokenizer, job.train, indices)
                batch = {key: value.to(accelerator.device) for key, value in batch.items()}
                labels = batch.pop("labels")
                logits = prepared(**batch).logits.float()
                loss = F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
                accelerator.backward(loss)
                if config.clip:
                    accelerator.clip_grad_norm_(trained, config.clip)
                lr = float(scheduler.get_last_lr()[0])
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
                step += 1
                pending.append((step, step / per_epoch, lr, len(indices), loss.detach()))
                if len(pending) == FETCH_STEPS or step % per_epoch == 0:
                    _report(journal, pending)
                if interrupted():
                    if best == -math.inf:
                        save()
                    raise Interrupted(f"stopped at step {step} of {steps}; {run.adapter} holds the best adapter so far")
            value, validation_loss = evaluate(
                job.task, model, job.base.tokenizer, job.validation, config.eval_batch_size
            )
            better = value > best
            if better:
                best, size = value, save()
            journal.evaluation(step, epoch + 1, job.task.metric, value, validation_loss, better)
            write_atomically(run.plot, draw(journal.records, job.task.metric))
        seconds, speed = journal.seconds, journal.examples_per_second
    if config.save_dtype != "float32":
        best = _value_as_saved(job, adapter, run, config)
    return Outcome(best, seconds, speed, size, _peak_memory(accelerator.device), job.epochs, steps)


def _groups(job: Job, adapter: Adapter, model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Optimiser groups: the head learns at its own rate, up factors faster if asked to; decay is for matrices only.

    LoRA+ (Hayou et al. 2024, arXiv 2402.12354) has the up factors learn faster than the down factors. Decay pulls
    coefficients towards the initial factor, which is not the prior that it is for weights.
    """
    head = {f"head:{name}" for name in job.base.head}
    matrices = {role for role, parts in job.plan.groups().items() if any(len(f.shape) > 1 for f, _ in parts)}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in adapter.trained(model).items():
        is_coefficient = name in adapter.numbers and job.plan.stack.k is not None
        is_vector = name not in matrices if name in adapter.numbers else parameter.ndim < 2
        decay = 0.0 if is_coefficient or is_vector else config.weight_decay
        faster = config.lora_plus_ratio if name == "up" else 1.0
        groups.setdefault((job.head_lr if name in head else job.lr * faster, decay), []).append(parameter)
    # The adapter's own rate leads, since it is the one shown.
    ordered = sorted(groups.items(), key=lambda each: each[0][0] != job.lr)
    return [{"params": params, "lr": lr, "weight_decay": decay} for (lr, decay), params in ordered]


def _course(step: int, steps: int, config: TrainConfig) -> float:
    """The learning rate at a step, relative to its peak: linear warm-up, then the schedule."""
    warm = math.ceil(config.warmup * steps)
    if step < warm:
        return (step + 1) / warm
    done = (step - warm) / max(1, steps - warm)
    match config.schedule:
        case "constant":
            return 1.0
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
        case "linear":
            return max(0.0, 1 - done)


def _dropout_seed(seed: int, step: int) -> int:
    return int(rng.words(rng.fold_in(seed, "", "train", f"dropout.{step}"), 1)[0] >> 1)


def _report(journal: Journal, pending: list[tuple[int, float, float, int, Tensor]]) -> None:
    """Fetch the losses of the steps just done and record them; stop if one is not finite."""
    losses = torch.stack([loss for *_, loss in pending]).tolist()
    for (step, epoch, lr, examples, _), loss in zip(pending, losses, strict=True):
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss} at step {step} (learning rate {lr:.1e}); lower --lr. "
                "The best adapter of earlier evaluations, if any, is kept"
            )
        journal.step(step, epoch, loss, lr, examples)
    pending.clear()


def _value_as_saved(job: Job, adapter: Adapter, run: RunDirectory, config: TrainConfig) -> float:
    """The metric of the rounded numbers in the file, which is what users will get."""
    model = job.base.model
    adapter_file.restore(model, run.adapter)
    return evaluate(job.task, model, job.base.tokenizer, job.validation, config.eval_batch_size)[0]


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@contextmanager
def _memory_guard() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise TrainingError("the accelerator is out of memory; lower --batch-size or --max-length") from None
    except MemoryError:
        raise TrainingError("out of memory; lower --batch-size or --max-length") from None
    except RuntimeError as error:
        if "can't allocate memory" in str(error):
            raise TrainingError("out of memory; lower --batch-size or --max-length") from None
        raise


@contextmanager
def _interruptible() -> Iterator[Any]:
    """Turns the first Ctrl-C into a question the loop can ask; a second one stops at once."""
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    # Only the main thread may take over signals; elsewhere Ctrl-C stays with the caller.
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, ask) if main else None
    try:
        yield lambda: asked
    finally:
        if main:
            signal.signal(signal.SIGINT, before)
