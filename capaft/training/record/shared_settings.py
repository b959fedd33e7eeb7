"""The settings of a run as its directory tells them: without what is private, which stands in a file beside them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from capaft.config.local_paths import PLACES, LocalPaths
from capaft.config.settings import setting_types
from capaft.config.sources import SAVED_TITLE, dump_settings
from capaft.config.train_config import TrainConfig
from capaft.config.values import parse_value
from capaft.model.origin import Origin
from capaft.support.files import write_atomically
from capaft.training.record.run_directory import PRIVATE, RunDirectory
from capaft.training.setup.job import Job

# Settings that say where and how a run goes on; a saved run repeats without them.
_NOT_REPEATED: dict[str, Any] = {
    "output": None,
    "overwrite": False,
    "resume": False,
    "trust_remote_code": False,
    "processes": 1,
    "show": 0,
}


def repeatable_settings(config: TrainConfig) -> TrainConfig:
    """The settings as they read back from the run's file: a column may be called "none", a setting may not."""
    config = replace(config, **_NOT_REPEATED)
    kinds = setting_types(TrainConfig)
    texts = {name: value for name, value in vars(config).items() if isinstance(value, str)}
    return replace(config, **{name: parse_value(kinds[name], text) for name, text in texts.items()})


def paths_of(config: TrainConfig, known: LocalPaths) -> LocalPaths:
    """The paths of what a run reads, by the names that its files tell.

    Args:
        config: the settings.
        known: the paths of the run that this one goes on with or repeats, which keep their names.
    """
    for setting, spec in _places(config):
        known = known.with_only(setting, spec)
    return known


def named_job(job: Job, config: TrainConfig, paths: LocalPaths) -> Job:
    """A job whose model and data go by the names that files may tell.

    Args:
        job: the job.
        config: the settings that it was made from.
        paths: the names.
    """
    shared = shared_settings(config, paths)
    base = job.base if shared.model is None else replace(job.base, base=Origin(shared.model, config.revision))
    return replace(job, data=shared.data or job.data, base=base)


def shared_settings(config: TrainConfig, paths: LocalPaths) -> TrainConfig:
    """The settings with the names of model, data and start that files may tell."""
    names: dict[str, Any] = {setting: spec and paths.name_of(setting, spec) for setting, spec in _places(config)}
    return replace(config, **names)


def write_settings(directory: RunDirectory, config: TrainConfig, paths: LocalPaths) -> None:
    """Write the settings of a run, the paths that they do not tell, and the names of what is not to be shared.

    Args:
        directory: the run's directory.
        config: the settings, as `shared_settings` has them.
        paths: those behind the names.

    Raises:
        TrainingError: a file cannot be written.
    """
    if paths.paths:
        write_atomically(directory.local, paths.text(directory.path), make_parents=False)
    else:
        directory.local.unlink(missing_ok=True)
    write_atomically(directory.ignored, PRIVATE, make_parents=False)
    write_atomically(directory.config, SAVED_TITLE + dump_settings(config), make_parents=False)


def _places(config: TrainConfig) -> list[tuple[str, str | None]]:
    return [(setting, getattr(config, setting)) for setting in PLACES]
