"""The settings of a run from all their sources, and what is to be said about where they come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path

from capaft.config.local_paths import LocalPaths
from capaft.config.presets import preset_file
from capaft.config.sources import MADE_BY, Flags, resolve_settings, user_labels
from capaft.config.train_config import TrainConfig
from capaft.support.console import say_nothing
from capaft.support.errors import UsageError
from capaft.support.paths import named_path


@dataclass(frozen=True)
class ResolvedRun:
    """The settings of a run, resolved.

    Attributes:
        settings: the settings.
        labels: by name of each setting that the user set, the user's name for it; None counts those that are not the
            default.
        named: lines about what files name, said before it is loaded, unless nothing is left to do.
        paths: those of the run that this one repeats, which goes by the same names.
    """

    settings: TrainConfig
    labels: Mapping[str, str] | None = None
    named: tuple[str, ...] = ()
    paths: LocalPaths = field(default_factory=LocalPaths)

    @property
    def chosen(self) -> set[str]:
        """Names of the settings that the user set."""
        return chosen_settings(self.settings, self.labels)


def chosen_settings(config: TrainConfig, labels: Mapping[str, str] | None) -> set[str]:
    """Names of the settings that the user set; without labels, of those that are not the default."""
    if labels is not None:
        return set(labels)
    return {field.name for field in fields(config) if getattr(config, field.name) != field.default}


def resolve_run(
    flags: Flags,
    environ: Mapping[str, str],
    config: Path | None = None,
    preset: str | None = None,
    say: Callable[[str], None] = say_nothing,
) -> ResolvedRun:
    """Resolve the settings of a run.

    Args:
        flags: those that were typed, or the keywords of a call in Python.
        environ: the environment.
        config: the user's file.
        preset: name of a published experiment.
        say: called with a line for each permission that a file claims.

    Raises:
        UsageError: a setting is wrong, or a file or preset does not exist.
    """
    if config is not None and not named_path("--config", config).is_file():
        raise UsageError(f"--config {config}: no such file; name a YAML file of settings")
    published = preset_file(preset) if preset else None
    resolve = partial(resolve_settings, TrainConfig, flags=flags, environ=environ, file=config, preset=published)
    lines: list[str] = []
    settings, sources = resolve(say=lines.append)
    begun = None
    if settings.resume and settings.output:
        from capaft.training.record.run_directory import started_config

        if begun := started_config(settings.output):
            # The run goes on with its own settings, except for those that the command sets.
            lines.clear()
            settings, sources = resolve(begun=begun, say=lines.append)
    if settings.overwrite and sources["overwrite"].startswith(f"{config}:"):
        lines.append(f"{sources['overwrite']}: overwrite is ignored; set --overwrite yourself to replace a run")
        settings = replace(settings, overwrite=False)
    for line in lines:
        say(line)
    named: list[str] = []
    if files := [file for file in (begun, config) if file]:
        from capaft.training.record.named import report_settings

        report_settings(settings, sources, files, named.append)
    is_saved = config is not None and config.read_text(encoding="utf-8-sig").startswith(MADE_BY)
    # The choices in the file of a run are capaft's own.
    labels = user_labels(settings, sources, None if is_saved else config)
    return ResolvedRun(settings, labels, tuple(named), LocalPaths.beside(config) if config else LocalPaths())
