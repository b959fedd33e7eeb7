"""One run, from its configuration to the files it leaves."""

from __future__ import annotations

import json
import typing
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from rich.console import Console

from capaft.adapter.attach import attach_plan
from capaft.adapter.file.fingerprint import weight_samples
from capaft.config.settings import dump_settings, parse_value
from capaft.config.train_config import TrainConfig
from capaft.methods.host import Host
from capaft.methods.stack import canonical_method
from capaft.support import strict_json
from capaft.support.errors import UsageError
from capaft.support.files import write_atomically
from capaft.training.accelerator import accelerator_for, move_model
from capaft.training.interrupt import memory_guard
from capaft.training.loop import train
from capaft.training.optimizer import check_optimizer
from capaft.training.parallel.processes import Processes
from capaft.training.parallel.sharding import shard_model, sharding_requested
from capaft.training.record.checkpoint import newest_checkpoint, prune_checkpoints
from capaft.training.record.model_card import card_text
from capaft.training.record.resume import check_same_origin, check_same_settings, origin_digests
from capaft.training.record.run_directory import (
    RunDirectory,
    choose_directory,
    hold_directory,
    remove_leftovers,
    replacing_run,
)
from capaft.training.setup.head_start import start_head
from capaft.training.setup.job import Job, prepare_job, settled_config

# What says where and how a run goes on, not what it is.
_NOT_REPEATED: dict[str, Any] = {"output": None, "overwrite": False, "resume": False, "processes": 1, "show": 0}
# The first line of a run's settings.
_MADE_BY = "# capaft "


def execute_run(config: TrainConfig, console: Console, command: Sequence[str] = ()) -> dict[str, Any]:
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
    check_optimizer(config.optimizer)
    in_shares = sharding_requested()
    accelerator = accelerator_for(config)
    processes = Processes.here()
    console.quiet = console.quiet or not processes.is_first
    # Which directory is free, the first process says: the others look when it has already made it.
    run = RunDirectory(processes.from_first(_choose(config) if processes.is_first else None))
    with hold_directory(run) if processes.is_first else nullcontext():
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
    resumed = newest_checkpoint(run.checkpoints) if resumes else None
    seen = (resumes, run.results.exists(), resumed.progress.step if resumed else 0)
    if len(set(processes.gather([seen]))) > 1:
        raise UsageError(f"--output {run.path}: not all processes see the same run; name a directory that they share")
    if resumes and run.results.exists():
        say(f"{run.path} is finished; nothing is left to do")
        return json.loads(run.results.read_text(encoding="utf-8"))
    decided = prepare_job(config, say)
    repeatable = _as_read(replace(settled_config(config, decided), **_NOT_REPEATED))
    origin = origin_digests(decided)
    if resumes:
        check_same_settings(run, repeatable)
        command = _command_of(run)
    if resumed:
        check_same_origin(resumed.made_from, origin, run.path)
    adapter_numbers, own_numbers = decided.adapter_numbers, decided.own_numbers
    if not in_shares:
        move_model(decided.base.model, accelerator.device)
    if resumed:
        before = resumed.progress.baseline
    else:
        with accelerator.autocast(), memory_guard():
            before = start_head(decided, config, console, processes)
    adapter = attach_plan(decided.base.model, decided.plan, dropout=config.dropout)
    if processes.is_first and resumed:
        remove_leftovers(run)
        prune_checkpoints(run.checkpoints, resumed.progress.step)
    with replacing_run(run, say) if processes.is_first and not resumed else nullcontext():
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
            shard_model(decided.base.model, adapter.trained(decided.base.model).values(), accelerator.device)
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
        write_atomically(run.card, card_text(results, command, run.config))
        write_atomically(run.results, strict_json.document(results, indent=2) + "\n")
    return results


def _choose(config: TrainConfig) -> Path:
    return choose_directory(
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


def _next(path: Path, decided: Job) -> list[str]:
    """Commands that make sense after a run."""
    host = decided.plan.stack.host
    found = [f"capaft eval {path}"]
    if host is None or not host.unmergeable:
        found.append(f"capaft merge {path} --output {path}/merged")
    if host is not None and type(host).product is not Host.product:
        found.append(f"capaft inspect-rank {path}")
    return found
