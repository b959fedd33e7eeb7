"""A finished run that is to train on: more epochs or steps, under a schedule that starts anew where the run ended.

The step is a setting of the run, so that an extended run is resumed and repeated as any other.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace

from capaft.config.restarts import Restart, parse_restarts
from capaft.config.settings import flag_of
from capaft.config.train_config import TrainConfig
from capaft.support.counting import agreeing, counted
from capaft.support.errors import UsageError
from capaft.training.record.checkpoint import Checkpoint
from capaft.training.record.results import read_results
from capaft.training.record.resume import LENGTH, changed_settings, check_same_settings
from capaft.training.record.run_directory import RunDirectory
from capaft.training.record.saved_run import settings_of_run
from capaft.training.setup.job import Job


def is_finished(run: RunDirectory) -> bool:
    """True if a run has results, and was not killed just after it had been extended.

    Raises:
        UsageError: the results cannot be read.
    """
    if not run.results.exists():
        return False
    restarts = parse_restarts(settings_of_run(run.config).restarts or ())
    return not restarts or read_results(run.results).steps > restarts[-1].step


def with_restarts(config: TrainConfig, run: RunDirectory) -> TrainConfig:
    """The settings with the restarts of a run, which no command repeats."""
    return config if config.restarts else replace(config, restarts=settings_of_run(run.config).restarts)


def continuation(
    run: RunDirectory, config: TrainConfig, job: Job, resumed: Checkpoint | None, chosen: Collection[str] = ()
) -> Restart | None:
    """Check that a run goes on as it was; the restart if it is finished and is to train on.

    Args:
        run: the run.
        config: the present settings, every choice filled in.
        job: the job that they make.
        resumed: the run's last checkpoint.
        chosen: names of the settings that the user set.

    Raises:
        UsageError: other settings than the length differ, or the length of a run that is not finished; a finished run
            has done more steps already, or has no checkpoint to go on from.
    """
    changed = changed_settings(run, config, chosen)
    if not is_finished(run) or not changed.keys() <= LENGTH:
        check_same_settings(run, config, chosen)
        return None
    results, steps = read_results(run.results), job.rates.steps
    if not changed or steps == results.steps:
        return None
    name = "max_steps" if config.max_steps else "epochs"
    if steps < results.steps:
        epochs = agreeing(results.epochs, "epoch", "epochs")
        raise UsageError(
            f"--resume: {run.path} has done {results.epochs:g} {epochs}, {counted(results.steps, 'step')}, and "
            f"{flag_of(name)} {getattr(config, name)} is {counted(steps, 'step')}; raise it, or start anew in another "
            "--output"
        )
    if resumed is None or resumed.progress.step != results.steps:
        raise UsageError(
            f"--resume: {run.path} has no checkpoint of its last step to go on from; start anew in another --output"
        )
    saved = settings_of_run(run.config)
    planned = saved.max_steps or (saved.epochs or 1) * math.ceil(len(job.train) / saved.batch_size)
    return Restart(results.steps, max(planned, results.steps))
