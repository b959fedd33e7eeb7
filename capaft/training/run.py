"""One run, from its configuration to the files it leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path

from rich.console import Console

from capaft.adapter.file.fingerprint import weight_samples
from capaft.adapter.install import attach_plan
from capaft.config.local_paths import LocalPaths, shared_name
from capaft.config.train_config import TrainConfig
from capaft.methods.stack import canonical_method
from capaft.support import strict_json
from capaft.support.activity import activity
from capaft.support.console import print_line, say_nothing
from capaft.support.errors import Interrupted, UsageError
from capaft.support.files import write_atomically
from capaft.training.accelerator import accelerator_for, move_model
from capaft.training.loop import train
from capaft.training.memory_guard import memory_guard
from capaft.training.optimizer import check_optimizer
from capaft.training.outcome import results_at, results_of
from capaft.training.parallel.processes import Processes
from capaft.training.parallel.sharding import shard_model, sharding_requested
from capaft.training.record.best_adapter import check_best_adapter
from capaft.training.record.checkpoint import Checkpoint, newest_checkpoint, prune_checkpoints
from capaft.training.record.extension import continuation, is_finished, with_restarts
from capaft.training.record.model_card import card_text
from capaft.training.record.next_commands import command_to_resume
from capaft.training.record.results import Results, read_results
from capaft.training.record.resume import (
    SETTINGS,
    changed_settings,
    check_same_origin,
    check_same_scale,
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
from capaft.training.record.shared_settings import (
    named_job,
    paths_of,
    repeatable_settings,
    shared_settings,
    write_settings,
)
from capaft.training.setup.head_start import start_head
from capaft.training.setup.job import Job
from capaft.training.setup.method import chosen_stack
from capaft.training.setup.prepare import prepare_job
from capaft.training.setup.settled import settled_config, settled_method
from capaft.training.trainer import Trainer


def execute_run(
    config: TrainConfig,
    console: Console,
    labels: Mapping[str, str] | None = None,
    paths: LocalPaths | None = None,
    named: Sequence[str] = (),
) -> Results:
    """Train, and write the run directory; or go on with a run that was interrupted, or extend a finished one.

    Args:
        config: the resolved settings.
        console: where people read.
        labels: by name of each setting that the user set, the user's name for it; None counts those that are not the
            default.
        paths: those of the run that this one repeats, which goes by the same names.
        named: lines about what files name, said before it is loaded, unless nothing is left to do.

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
            config, paths = with_restarts(config, directory), LocalPaths.read(directory.path)

        # Then all that can be decided, so that a mistake costs nothing that was there before.
        chosen = _chosen(config, labels)
        has_nothing_left = finished and not changed_settings(
            directory, repeatable_settings(settled_method(config, chosen_stack(config))), chosen
        )
        explain = say_nothing if has_nothing_left else say
        for line in named:
            explain(line)
        paths = paths_of(config, paths or LocalPaths())
        with activity(console, "reading the data and loading the model"):
            job = prepare_job(config, explain, labels)
        job = named_job(job, config, paths)
        made_from, repeatable = origin_digests(job), repeatable_settings(settled_config(config, job))
        made_from[SETTINGS] = settings_digest(repeatable)
        restart = continuation(directory, repeatable, job, resumed, chosen) if resumes else None
        # No process may change what another has yet to compare.
        processes.gather([restart])
        if resumed:
            check_same_origin(resumed.made_from, made_from, directory.path, resumed.made_with)
            check_same_scale(resumed.progress.best, directory.path)
        if finished and not restart:
            if processes.is_first:
                remove_leftovers(directory)
            return _finished(directory, job, resumed, say)
        if restart:
            say(
                f"{directory.path} is extended from {restart.step} to {job.rates.steps} steps; the schedule starts "
                f"anew at step {restart.step}"
            )
            restarts = (*(config.restarts or ()), str(restart))
            config, repeatable = replace(config, restarts=restarts), replace(repeatable, restarts=restarts)
        shared = shared_settings(repeatable, paths)
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
                write_settings(directory, shared, paths)
                # Only now: a run that is extended is not finished once its settings say so.
                directory.results.unlink(missing_ok=True)
            if in_shares and processes.count > 1:
                # No process can read all weights afterwards.
                run = replace(run, samples=weight_samples(run.model, job.plan))
                shard_model(run.model, run.trained.values(), accelerator.device)
            # A sharded model talks to the other processes during every forward.
            with _tracked(run, shared), processes.answered() if in_shares else nullcontext():
                outcome = train(run, resumed)
            results = results_of(run, outcome)
            if processes.is_first:
                written = results_at(results, shared_name(str(directory.path)).removeprefix("./"), job)
                write_atomically(directory.card, card_text(written, job, shared), make_parents=False)
                document = strict_json.document(written.record(), indent=2) + "\n"
                write_atomically(directory.results, document, make_parents=False)
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
        raise Interrupted(f"{cause}; resume with {command_to_resume(str(directory.path))}") from None


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


def _finished(run: RunDirectory, job: Job, resumed: Checkpoint | None, say: Callable[[str], None]) -> Results:
    """The results of a run that has nothing left to do.

    Raises:
        UsageError: they cannot be read.
    """
    results = read_results(run.results)
    if resumed is None:
        say(f"warning: {run.path} has no checkpoint, so that its data and base model were not compared")
    say(f"{run.path} is finished; nothing is left to do")
    return results_at(results, str(run.path), job)


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


def _choose(config: TrainConfig) -> Path:
    return choose_directory(
        config.output, canonical_method(config.method), overwrite=config.overwrite, resume=config.resume
    ).path
