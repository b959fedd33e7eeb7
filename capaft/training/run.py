"""One run, from its configuration to the files it leaves."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from datasets import Dataset
from rich.console import Console

from capaft.adapter.file.adapter_file import write_file
from capaft.adapter.file.fingerprint import weight_samples
from capaft.adapter.install import attach_plan
from capaft.config.local_paths import LocalPaths, shared_name
from capaft.config.restarts import Restart
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
from capaft.training.record.metrics import Record
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
from capaft.training.setup.predecessor import with_predecessor
from capaft.training.setup.prepare import prepare_job
from capaft.training.setup.resolved_run import ResolvedRun, chosen_settings
from capaft.training.setup.settled import settled_config, settled_method
from capaft.training.trainer import Trainer

Say = Callable[[str], None]


@dataclass(frozen=True)
class Caller:
    """What a program that starts a run hands over beside its settings.

    Attributes:
        rows: the data set, by the names of its splits; None if the settings name it.
        progress: called with the record of every step and every evaluation.
    """

    rows: Mapping[str, Dataset] | None = None
    progress: Callable[[Record], None] | None = None


@dataclass(frozen=True)
class _Earlier:
    """What an earlier start has left in a run's directory.

    Attributes:
        resumes: there is a run, and it is to go on.
        resumed: its last checkpoint, if it has one.
        finished: it has reached its end.
    """

    resumes: bool
    resumed: Checkpoint | None
    finished: bool

    @staticmethod
    def of(directory: RunDirectory, config: TrainConfig, processes: Processes, say: Say) -> _Earlier:
        """Look into a run's directory.

        Raises:
            UsageError: nothing there can be read, or the processes do not see the same.
        """
        resumes = config.resume and directory.config.exists()
        resumed = newest_checkpoint(directory.checkpoints, say) if resumes else None
        finished = resumes and is_finished(directory)
        _check_shared(directory, (resumes, finished, resumed.progress.step if resumed else 0), processes)
        if resumed:
            check_best_adapter(directory, resumed.progress)
        return _Earlier(resumes, resumed, finished)


@dataclass(frozen=True)
class _Decisions:
    """Everything that is decided before the first step.

    Attributes:
        config: the settings.
        job: the job, its model and data by the names that files may tell.
        made_from: digests of what the run is made from.
        shared: the settings, every choice filled in, as the run's directory tells them.
        paths: the paths behind their names.
        restart: the point at which a finished run trains on.
    """

    config: TrainConfig
    job: Job
    made_from: dict[str, str]
    shared: TrainConfig
    paths: LocalPaths
    restart: Restart | None


def execute_run(wanted: ResolvedRun | TrainConfig, console: Console, caller: Caller | None = None) -> Results:
    """Train, and write the run directory; or go on with a run that was interrupted, or extend a finished one.

    Args:
        wanted: the resolved settings.
        console: where people read.
        caller: what a program hands over beside them.

    Raises:
        UsageError: the settings or the data cannot be used; nothing was written.
        TrainingError: the run could not go on; the best adapter so far is on disk.
        Interrupted: Ctrl-C; the run can be resumed.
    """
    wanted = wanted if isinstance(wanted, ResolvedRun) else ResolvedRun(wanted)
    caller, config, labels, paths = caller or Caller(), wanted.settings, wanted.labels, wanted.paths
    # First what this machine may lack: it is refused before a directory is made or data are read.
    check_optimizer(config.optimizer)
    in_shares = sharding_requested()
    accelerator = accelerator_for(config)
    processes = Processes.here(config.timeout)
    console.quiet = console.quiet or not processes.is_first
    say = partial(print_line, console)
    config, predecessor = with_predecessor(config, wanted.chosen, say)
    # The first process chooses the directory: the others look when it has already made it.
    directory = RunDirectory(processes.from_first(_choose(config) if processes.is_first else None))
    with hold_directory(directory) if processes.is_first else nullcontext():
        earlier = _Earlier.of(directory, config, processes, say)
        if earlier.resumes:
            config, paths = with_restarts(config, directory), LocalPaths.read(directory.path)
        # All that can be decided, so that a mistake costs nothing that was there before.
        chosen = chosen_settings(config, labels)
        explain = say_nothing if _has_nothing_left(config, directory, earlier, chosen) else say
        for line in wanted.named:
            explain(line)
        with activity(console, "reading the data and loading the model"):
            job = prepare_job(config, explain, labels, predecessor, caller.rows)
        decisions = _decide(config, job, paths_of(config, paths), directory, earlier, chosen)
        # No process may change what another has yet to compare.
        processes.gather([decisions.restart])
        if (resumed := earlier.resumed) is not None:
            check_same_origin(resumed.made_from, decisions.made_from, directory.path, resumed.made_with)
            check_same_scale(resumed.progress.best, directory.path)
        if earlier.finished and not decisions.restart:
            if processes.is_first:
                remove_leftovers(directory)
            return _finished(directory, decisions.job, resumed, say)
        decisions = _restarted(decisions, directory, say)
        run = Trainer(
            decisions.job,
            decisions.config,
            directory,
            console,
            accelerator,
            processes,
            made_from=decisions.made_from,
            progress=caller.progress,
        )
        return _carry_out(_ready(run, resumed, in_shares=in_shares), decisions, resumed, in_shares=in_shares)


def _has_nothing_left(config: TrainConfig, directory: RunDirectory, earlier: _Earlier, chosen: Collection[str]) -> bool:
    """True if a run is finished and the settings, as far as they can be told without its data, leave it so."""
    if not earlier.finished:
        return False
    return not changed_settings(directory, repeatable_settings(settled_method(config, chosen_stack(config))), chosen)


def _decide(
    config: TrainConfig,
    job: Job,
    paths: LocalPaths,
    directory: RunDirectory,
    earlier: _Earlier,
    chosen: Collection[str],
) -> _Decisions:
    """Decide what the files tell, and whether and where a run goes on.

    Raises:
        UsageError: it is another run than the one in its directory.
    """
    job = named_job(job, config, paths)
    made_from, repeatable = origin_digests(job), repeatable_settings(settled_config(config, job))
    made_from[SETTINGS] = settings_digest(repeatable)
    restart = continuation(directory, repeatable, job, earlier.resumed, chosen) if earlier.resumes else None
    shared = shared_settings(repeatable, paths)
    if config.init_from:
        # A run goes on, and is repeated, from the copy of its start, whatever becomes of the other run.
        paths = paths.with_copy("init_from", config.init_from, directory.start)
    return _Decisions(config, job, made_from, shared, paths, restart)


def _restarted(decisions: _Decisions, directory: RunDirectory, say: Say) -> _Decisions:
    """The decisions with the restart, if there is one, among the settings."""
    restart = decisions.restart
    if restart is None:
        return decisions
    say(
        f"{directory.path} is extended from {restart.step} to {decisions.job.rates.steps} steps; the schedule starts "
        f"anew at step {restart.step}"
    )
    restarts = (*(decisions.config.restarts or ()), str(restart))
    config, shared = replace(decisions.config, restarts=restarts), replace(decisions.shared, restarts=restarts)
    return replace(decisions, config=config, shared=shared)


def _ready(run: Trainer, resumed: Checkpoint | None, *, in_shares: bool) -> Trainer:
    """The run with its head fitted and its adapter attached, and the score before the first step."""
    job, config = run.job, run.config
    if not in_shares:
        move_model(run.model, run.accelerator.device)

    def attached(run: Trainer) -> Trainer:
        adapter = attach_plan(job.base.model, job.plan, dropout=config.dropout, in_place=True)
        return replace(run, adapter=adapter)

    if resumed:
        return attached(replace(run, baseline=resumed.progress.baseline))
    if job.carried is None:
        # The head is fitted before the adapter is attached: on the frozen base alone.
        return attached(replace(run, baseline=_start_head(run)))
    run = attached(run)
    job.carried.fill(run.trained)
    return replace(run, baseline=_start_head(run))


def _carry_out(run: Trainer, decisions: _Decisions, resumed: Checkpoint | None, *, in_shares: bool) -> Results:
    """Train, and leave the files of the run."""
    directory, processes, job = run.directory, run.processes, run.job
    # Only now an old run gives way; it is put back if the new one leaves nothing.
    if processes.is_first and resumed:
        remove_leftovers(directory)
        prune_checkpoints(directory.checkpoints, resumed.progress.step)
    with (
        replacing_run(directory, run.say) if processes.is_first and not resumed else nullcontext(),
        _resumable(directory),
    ):
        if processes.is_first:
            if job.carried and not resumed:
                write_file(job.carried.predecessor.file, directory.start)
            write_settings(directory, decisions.shared, decisions.paths)
            # Only now: a run that is extended is not finished once its settings say so.
            directory.results.unlink(missing_ok=True)
        if in_shares and processes.count > 1:
            # No process can read all weights afterwards.
            run = replace(run, samples=weight_samples(run.model, job.plan))
            shard_model(run.model, run.trained.values(), run.accelerator.device)
        # A sharded model talks to the other processes during every forward.
        with _tracked(run, decisions.shared), processes.answered() if in_shares else nullcontext():
            outcome = train(run, resumed)
        results = results_of(run, outcome, decisions.shared.init_from)
        if processes.is_first:
            written = results_at(results, shared_name(str(directory.path)).removeprefix("./"), job)
            write_atomically(directory.card, card_text(written, job, decisions.shared), make_parents=False)
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
