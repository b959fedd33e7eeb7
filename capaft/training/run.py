"""One run, from its configuration to the files it leaves."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from capaft.adapter.file.fingerprint import weight_samples
from capaft.adapter.install import attach_plan
from capaft.config.settings import setting_types
from capaft.config.sources import MADE_BY, dump_settings
from capaft.config.train_config import TrainConfig
from capaft.config.values import parse_value
from capaft.methods.host import Host
from capaft.methods.stack import canonical_method
from capaft.support import strict_json
from capaft.support.console import print_line
from capaft.support.errors import Interrupted, UsageError
from capaft.support.files import write_atomically
from capaft.training.accelerator import accelerator_for, move_model
from capaft.training.interrupt import memory_guard
from capaft.training.loop import Outcome, train
from capaft.training.optimizer import check_optimizer
from capaft.training.parallel.processes import Processes
from capaft.training.parallel.sharding import shard_model, sharding_requested
from capaft.training.record.best_adapter import check_best_adapter
from capaft.training.record.checkpoint import Checkpoint, newest_checkpoint, prune_checkpoints
from capaft.training.record.extension import continuation, is_finished, with_restarts
from capaft.training.record.model_card import card_text
from capaft.training.record.results import Results, read_results
from capaft.training.record.resume import (
    SETTINGS,
    changed_settings,
    check_same_origin,
    origin_digests,
    settings_digest,
)
from capaft.training.record.run_directory import (
    RunDirectory,
    choose_directory,
    hold_directory,
    remove_leftovers,
    replacing_run,
)
from capaft.training.setup.head_start import start_head
from capaft.training.setup.job import Job
from capaft.training.setup.method import chosen_stack
from capaft.training.setup.prepare import prepare_job
from capaft.training.setup.settled import settled_config, settled_method
from capaft.training.trainer import Trainer

# Settings that say where and how a run goes on; a saved run repeats without them.
_NOT_REPEATED: dict[str, Any] = {"output": None, "overwrite": False, "resume": False, "processes": 1, "show": 0}


def execute_run(
    config: TrainConfig, console: Console, command: Sequence[str] = (), labels: Mapping[str, str] | None = None
) -> Results:
    """Train, and write the run directory; or go on with a run that was interrupted, or extend a finished one.

    Args:
        config: the resolved settings.
        console: where people read.
        command: the command line that was typed, for the model card.
        labels: by name of each setting that the user set, the user's name for it; None counts those that are not the
            default.

    Raises:
        UsageError: the settings or the data cannot be used; nothing was written.
        TrainingError: the run could not go on; the best adapter so far is on disk.
        Interrupted: Ctrl-C; the run can be resumed.
    """
    # First what this machine may lack: it is refused before a directory is made or data are read.
    check_optimizer(config.optimizer)
    in_shares = sharding_requested()
    accelerator = accelerator_for(config)
    processes = Processes.here(config.timeout)
    console.quiet = console.quiet or not processes.is_first
    say = partial(print_line, console)
    # The first process chooses the directory: the others look when it has already made it.
    directory = RunDirectory(processes.from_first(_choose(config) if processes.is_first else None))
    with hold_directory(directory) if processes.is_first else nullcontext():
        resumes = config.resume and directory.config.exists()
        resumed = newest_checkpoint(directory.checkpoints, say) if resumes else None
        finished = resumes and is_finished(directory)
        _check_shared(directory, (resumes, finished, resumed.progress.step if resumed else 0), processes)
        if resumed:
            check_best_adapter(directory, resumed.progress)
        if resumes:
            config, command = with_restarts(config, directory), _command_of(directory)

        # Then all that can be decided, so that a mistake costs nothing that was there before.
        chosen = _chosen(config, labels)
        has_nothing_left = finished and not changed_settings(
            directory, _repeatable(settled_method(config, chosen_stack(config))), chosen
        )
        job = prepare_job(config, _say_nothing if has_nothing_left else say, labels)
        made_from, repeatable = origin_digests(job), _repeatable(settled_config(config, job))
        made_from[SETTINGS] = settings_digest(repeatable)
        restart = continuation(directory, repeatable, job, resumed, chosen) if resumes else None
        # No process may change what another has yet to compare.
        processes.gather([restart])
        if resumed:
            check_same_origin(resumed.made_from, made_from, directory.path, resumed.made_with)
        if finished and not restart:
            return _finished(directory, resumed, say)
        if restart:
            say(
                f"{directory.path} is extended from {restart.step} to {job.rates.steps} steps; the schedule starts "
                f"anew at step {restart.step}"
            )
            restarts = (*(config.restarts or ()), str(restart))
            config, repeatable = replace(config, restarts=restarts), replace(repeatable, restarts=restarts)
        run = Trainer(job, config, directory, console, accelerator, processes, made_from=made_from)

        # The head is fitted before the adapter is attached: on the frozen base alone.
        if not in_shares:
            move_model(run.model, accelerator.device)
        run = replace(run, baseline=resumed.progress.baseline if resumed else _start_head(run))
        run = replace(run, adapter=attach_plan(job.base.model, job.plan, dropout=config.dropout, in_place=True))

        # Only now an old run gives way; it is put back if the new one leaves nothing.
        if processes.is_first and resumed:
            remove_leftovers(directory)
            prune_checkpoints(directory.checkpoints, resumed.progress.step)
        with (
            replacing_run(directory, say) if processes.is_first and not resumed else nullcontext(),
            _resumable(directory),
        ):
            if processes.is_first:
                made_by = f"{MADE_BY}{json.dumps(list(command))}\n\n"
                write_atomically(directory.config, made_by + dump_settings(repeatable), make_parents=False)
                # Only now: a run that is extended is not finished once its settings say so.
                directory.results.unlink(missing_ok=True)
            if in_shares and processes.count > 1:
                # No process can read all weights afterwards.
                run = replace(run, samples=weight_samples(run.model, job.plan))
                shard_model(run.model, run.trained.values(), accelerator.device)
            # A sharded model talks to the other processes during every forward.
            with _tracked(run, repeatable), processes.answered() if in_shares else nullcontext():
                outcome = train(run, resumed)
            results = _results(run, outcome)
            if processes.is_first:
                card, document = card_text(results, command, directory.config), results.record()
                write_atomically(directory.card, card, make_parents=False)
                written = strict_json.document(document, indent=2) + "\n"
                write_atomically(directory.results, written, make_parents=False)
        return results


@contextmanager
def _resumable(directory: RunDirectory) -> Iterator[None]:
    """Has an interruption say how the run goes on, if it has come far enough.

    Raises:
        Interrupted: instead of `KeyboardInterrupt`.
    """
    try:
        yield
    except KeyboardInterrupt as stop:
        if not directory.has_trained:
            raise
        cause = str(stop) or "stopped"
        raise Interrupted(f"{cause}; resume with --resume --output {directory.path}") from None


def _say_nothing(line: str) -> None:
    """Print no line."""


def _chosen(config: TrainConfig, labels: Mapping[str, str] | None) -> set[str]:
    """Names of the settings that the user set; without labels, of those that are not the default."""
    if labels is not None:
        return set(labels)
    return {field.name for field in fields(config) if getattr(config, field.name) != field.default}


def _check_shared(directory: RunDirectory, seen: tuple[bool, bool, int], processes: Processes) -> None:
    """Make sure that all processes see the same files.

    Args:
        directory: the run's directory.
        seen: what this process sees: a run to go on with, whether that is finished, and its last step.
        processes: those that train together.

    Raises:
        UsageError: they do not.
    """
    if len(set(processes.gather([seen]))) > 1:
        raise UsageError(
            f"--output {directory.path}: the processes do not all see the same run; name a directory that they share"
        )


def _finished(run: RunDirectory, resumed: Checkpoint | None, say: Callable[[str], None]) -> Results:
    """The results of a run that has nothing left to do.

    Raises:
        UsageError: they cannot be read.
    """
    results = read_results(run.results)
    if resumed is None:
        say(f"warning: {run.path} has no checkpoint, so that its data and base model were not compared")
    say(f"{run.path} is finished; nothing is left to do")
    return results


def _start_head(run: Trainer) -> float | None:
    with run.accelerator.autocast(), memory_guard():
        return start_head(run)


@contextmanager
def _tracked(run: Trainer, config: TrainConfig) -> Iterator[None]:
    """Has the trackers, if any, log the run for as long as the context lasts."""
    if not run.config.tracker:
        yield
        return
    run.accelerator.project_configuration.logging_dir = str(run.directory.trackers)
    settings = {name: str(value) for name, value in asdict(config).items()}
    run.accelerator.init_trackers("capaft", config=settings)
    try:
        yield
    finally:
        # Trackers keep the last records back.
        run.accelerator.end_training()


def _results(run: Trainer, outcome: Outcome) -> Results:
    job = run.job
    return Results(
        output=str(run.directory.path),
        model=job.base.base.name or "",
        data=job.data,
        task=job.task.name,
        method=job.plan.stack.method,
        metric=job.task.metric,
        baseline=run.baseline,
        trainable_parameters=job.adapter_parameters + job.head_parameters,
        adapter_parameters=job.adapter_parameters,
        head_parameters=job.head_parameters,
        processes=run.processes.count,
        seed=run.config.seed,
        train_examples=job.train.examples,
        validation_examples=job.validation.examples,
        labels=list(job.task.labels),
        next=_next(run.directory.path, job),
        score_names=job.task.score_names(outcome.scores),
        **vars(outcome),
    )


def _choose(config: TrainConfig) -> Path:
    return choose_directory(
        config.output, canonical_method(config.method), overwrite=config.overwrite, resume=config.resume
    ).path


def _repeatable(config: TrainConfig) -> TrainConfig:
    """The settings as they read back from the run's file: a column may be called "none", a setting may not."""
    config = replace(config, **_NOT_REPEATED)
    kinds = setting_types(TrainConfig)
    texts = {name: value for name, value in vars(config).items() if isinstance(value, str)}
    return replace(config, **{name: parse_value(kinds[name], text) for name, text in texts.items()})


def _command_of(run: RunDirectory) -> list[str]:
    """The command that a run was started with."""
    first, *_ = run.config.read_text(encoding="utf-8").splitlines()
    command: list[str] = json.loads(first.removeprefix(MADE_BY)) if first.startswith(MADE_BY) else []
    return command


def _next(path: Path, job: Job) -> list[str]:
    """Commands that make sense after a run."""
    host = job.plan.stack.host
    commands = [f"capaft eval {path}"]
    if host is None or not host.unmergeable:
        commands.append(f"capaft merge {path} --output {path}/merged")
    if host is not None and type(host).product is not Host.product:
        commands.append(f"capaft inspect-rank {path}")
    return commands
