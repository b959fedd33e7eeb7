"""One run, from its configuration to the files it leaves."""

from __future__ import annotations

import json
import time
import typing
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console

from capaft import card, checkpoint, fitted_head, head_cache, job, optimiser, run_directory, sharding
from capaft.adapter.attach import attach_plan
from capaft.adapter.file.fingerprint import weight_samples
from capaft.config.settings import dump_settings, parse_value, resolve_settings
from capaft.config.train_config import TrainConfig
from capaft.head_cache import Start
from capaft.interrupt import memory_guard
from capaft.job import Job
from capaft.machine import accelerator_for, move
from capaft.made_from import check_same, made_from
from capaft.methods.host import Host
from capaft.methods.stack import canonical_method
from capaft.processes import Processes
from capaft.run_directory import RunDirectory
from capaft.support import strict_json
from capaft.support.errors import UsageError
from capaft.support.files import write_atomically
from capaft.train import train

# What says where and how a run goes on, not what it is.
_NOT_REPEATED: dict[str, Any] = {"output": None, "overwrite": False, "resume": False, "processes": 1, "show": 0}
# What a run may go on with otherwise than it began: how it fits the machine, and who is told of it.
_FREE = ("micro_batch_size", "eval_batch_size", "gradient_checkpointing", "checkpoint_seconds", "tracker", "head_cache")

# The first line of a run's settings.
_MADE_BY = "# capaft "


def execute(config: TrainConfig, console: Console, command: Sequence[str] = ()) -> dict[str, Any]:
    """Train, and write the run directory; or go on with a run that was interrupted.

    Args:
        config: the resolved configuration.
        console: where people read.
        command: the command line that was typed, for the model card.

    Returns:
        The results, as `results.json` holds them.

    Raises:
        UsageError: the configuration or the data cannot be used; nothing was written.
        TrainingError: the run could not go on; the best adapter so far is on disk.
        Interrupted: Ctrl-C; the run can be resumed.
    """
    optimiser.check(config.optimizer)
    in_shares = sharding.asked_for()
    accelerator = accelerator_for(config)
    processes = Processes.here()
    console.quiet = console.quiet or not processes.is_first
    # Which directory is free, the first process says: the others look when it has already made it.
    run = RunDirectory(processes.from_first(_choose(config) if processes.is_first else None))
    with run_directory.held(run) if processes.is_first else nullcontext():
        return _execute(config, run, console, command, accelerator, processes, in_shares)


def _execute(
    config: TrainConfig,
    run: RunDirectory,
    console: Console,
    command: Sequence[str],
    accelerator: Accelerator,
    processes: Processes,
    in_shares: bool,
) -> dict[str, Any]:
    """The same, in a directory of its own."""

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    resumes = config.resume and run.config.exists()
    resumed = checkpoint.newest(run.checkpoints) if resumes else None
    seen = (resumes, run.results.exists(), resumed.progress.step if resumed else 0)
    if len(set(processes.gather([seen]))) > 1:
        raise UsageError(f"--output {run.path}: not all processes see the same run; name a directory that they share")
    if resumes and run.results.exists():
        say(f"{run.path} is finished; nothing is left to do")
        return json.loads(run.results.read_text(encoding="utf-8"))
    decided = job.prepare(config, say)
    repeatable = _as_read(replace(job.settled(config, decided), **_NOT_REPEATED))
    origin = made_from(decided)
    if resumes:
        _check_same(run, repeatable)
        command = _command_of(run)
    if resumed:
        check_same(resumed.made_from, origin, run.path)
    adapter_numbers, own_numbers = decided.adapter_numbers, decided.own_numbers
    if not in_shares:
        move(decided.base.model, accelerator.device)
    if resumed:
        before = resumed.progress.baseline
    else:
        with accelerator.autocast(), memory_guard():
            before = start_head(decided, config, console, processes)
    adapter = attach_plan(decided.base.model, decided.plan, dropout=config.dropout)
    if processes.is_first and resumed:
        run_directory.sweep(run)
        checkpoint.prune(run.checkpoints, resumed.progress.step)
    with run_directory.replacing(run, say) if processes.is_first and not resumed else nullcontext():
        if processes.is_first:
            write_atomically(run.config, f"{_MADE_BY}{json.dumps(list(command))}\n\n{dump_settings(repeatable)}")
        if config.tracker:
            accelerator.project_configuration.logging_dir = str(run.trackers)
            settings = {name: str(value) for name, value in asdict(repeatable).items()}
            accelerator.init_trackers("capaft", config=settings)
        samples = None
        if in_shares and processes.count > 1:
            # No process can read all weights afterwards.
            samples = weight_samples(decided.base.model, decided.plan)
            sharding.shard(decided.base.model, adapter.trained(decided.base.model).values(), accelerator.device)
        try:
            outcome = train(
                decided,
                adapter,
                config,
                run,
                console,
                accelerator=accelerator,
                processes=processes,
                resumed=resumed,
                baseline=before,
                samples=samples,
                made_from=origin,
            )
        finally:
            # Trackers keep the last records back.
            if config.tracker:
                accelerator.end_training()
    results = {
        "output": str(run.path),
        "model": decided.base.base.name,
        "data": decided.data,
        "task": decided.task.name,
        "method": decided.plan.stack.method,
        "metric": decided.task.metric,
        "value": outcome.value,
        "baseline": before,
        "trainable_parameters": adapter_numbers + own_numbers,
        "adapter_parameters": adapter_numbers,
        "head_parameters": own_numbers,
        **{key: value for key, value in asdict(outcome).items() if key != "value"},
        "seed": config.seed,
        "train_examples": decided.train.examples,
        "validation_examples": decided.validation.examples,
        "labels": list(decided.task.labels),
        "next": _next(run.path, decided),
    }
    if processes.is_first:
        write_atomically(run.card, card.write(results, command, run.config))
        write_atomically(run.results, strict_json.document(results, indent=2) + "\n")
    return results


def _choose(config: TrainConfig) -> Path:
    return run_directory.choose(
        config.output, canonical_method(config.method), overwrite=config.overwrite, resume=config.resume
    ).path


def _as_read(config: TrainConfig) -> TrainConfig:
    """The settings as a file of them is read: what a column may be called, such as none, a setting may not."""
    kinds = typing.get_type_hints(TrainConfig, include_extras=True)
    texts = {name: value for name, value in vars(config).items() if isinstance(value, str)}
    return replace(config, **{name: parse_value(kinds[name], text) for name, text in texts.items()})


def _command_of(run: RunDirectory) -> list[str]:
    """The command that a run was started with."""
    first, *_ = run.config.read_text(encoding="utf-8").splitlines()
    found: list[str] = json.loads(first.removeprefix(_MADE_BY)) if first.startswith(_MADE_BY) else []
    return found


def _check_same(run: RunDirectory, now: TrainConfig) -> None:
    """Refuse to go on with a run under other settings.

    Raises:
        UsageError: names the first setting that differs.
    """
    saved, _ = resolve_settings(TrainConfig, flags={}, environ={}, file=run.config)
    for each in fields(TrainConfig):
        then, here = getattr(saved, each.name), getattr(now, each.name)
        if then != here and each.name not in _FREE:
            flag = f"--{each.name.replace('_', '-')}"
            raise UsageError(
                f"--resume goes on with {run.path}, which has {flag} {then} and not {here}; drop {flag}, or start anew "
                "in another --output"
            )


def _next(path: Path, decided: Job) -> list[str]:
    """Commands that make sense after a run."""
    host = decided.plan.stack.host
    found = [f"capaft eval {path}"]
    if host is None or not host.unmergeable:
        found.append(f"capaft merge {path} --output {path}/merged")
    if host is not None and type(host).product is not Host.product:
        found.append(f"capaft inspect-rank {path}")
    return found


def start_head(decided: Job, config: TrainConfig, console: Console, processes: Processes) -> float | None:
    """Fit a head on the frozen base where it is wanted: as the head's start, as the baseline, or as both.

    The first process fits it and the others take its numbers, so that all start from the same bits.

    Returns:
        The baseline's score, or None where it was not asked for or the task has none.
    """
    wanted = config.head_init == "fitted" and config.head == "full" and decided.base.new_head
    starts = wanted and fitted_head.installs(decided.base)
    if not (decided.baseline or starts) or not fitted_head.fits(decided.task, decided.train):
        return None
    before = None
    if processes.is_first:
        count = min(len(decided.train), fitted_head.EXAMPLES)
        aim = "start and baseline" if starts and decided.baseline else "start" if starts else "baseline"
        key = _key_of_head(decided, config)
        found = head_cache.find(key) if key else None
        kept = ", by an earlier run (--no-head-cache fits it anew)" if found else ""
        line = f"head   fitted on {count} examples' features of the frozen base, as {aim}{kept}"
        console.print(line, highlight=False, soft_wrap=True)
        started = time.perf_counter()
        if not found and (found := _fitted(decided, config)) and key:
            head_cache.keep(key, found)
        before = found.baseline if found else None
        if before is not None:
            seconds = "" if kept else f" ({time.perf_counter() - started:.0f} s)"
            console.print(
                f"before {decided.task.metric} {before:.4f} with a head fitted on the frozen base{seconds}",
                highlight=False,
            )
        if found and starts:
            found.head.install(decided.base)
    own = decided.base.named_parameters()
    numbers = processes.from_first([own[name].detach().cpu() for name in decided.base.head])
    with torch.no_grad():
        for name, values in zip(decided.base.head, numbers, strict=True):
            own[name].copy_(values)
    return processes.from_first(before)


def _fitted(decided: Job, config: TrainConfig) -> Start | None:
    """The head that training starts from, and the baseline if it is wanted; None if the model's head cannot be read."""
    task, base, batch_size = decided.task, decided.base, config.eval_batch_size
    if (heads := fitted_head.fit(task, base, decided.train, batch_size, config.seed)) is None:
        return None
    best, careful = heads
    return Start(careful, best.score(task, base, decided.validation, batch_size) if decided.baseline else None)


def _key_of_head(decided: Job, config: TrainConfig) -> str | None:
    """What the same start would be found by in the cache, if it may be looked for there."""
    if not config.head_cache or config.trust_remote_code:
        return None
    examples = [decided.train, decided.validation] if decided.baseline else [decided.train]
    settings = {name: getattr(config, name) for name in ("seed", "eval_batch_size", "precision")}
    return head_cache.key(decided.task, decided.base, examples, settings)
