"""`capaft train`: train an adapter."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from capaft.commands.reporting import Json, quiet_libraries, reporting
from capaft.config.presets import preset_file
from capaft.config.signature import signature
from capaft.config.sources import MADE_BY, dump_settings, resolve_settings, user_labels, with_labels
from capaft.config.train_config import TrainConfig
from capaft.support import strict_json
from capaft.support.console import is_first_process, print_line
from capaft.support.errors import CapaftError, UsageError
from capaft.support.signals import unwind_from_here


@signature(TrainConfig)
def train_command(
    config: Annotated[Path | None, typer.Option("--config", help="YAML file of settings.")] = None,
    preset: Annotated[
        str | None,
        typer.Option("--preset", help="Published experiment whose settings to use; `capaft presets` lists them."),
    ] = None,
    json: Json = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Resolve everything, train nothing, and show the plan.")
    ] = False,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the resolved settings as YAML and stop.")
    ] = False,
    **flags: str | bool | list[str] | None,
) -> None:
    """Train an adapter. Without arguments: a real job on an embedded model and data set."""
    with reporting() as console:
        settings, labels = _resolve(flags, config, preset)
        if print_config:
            print(dump_settings(settings), end="")
            return
        if not dry_run:
            from capaft.training.parallel.launch import follow_launcher, launch_processes, should_launch

            if should_launch(settings.processes):
                raise typer.Exit(launch_processes(settings.processes, sys.argv[1:]))
            follow_launcher()
        quiet_libraries(console)
        if dry_run:
            from capaft.commands.dry_run import describe_run, dry_run_text

            unwind_from_here()
            with _naming(labels):
                dry_run_report = describe_run(settings, lambda line: print_line(console, line), labels)
            print(strict_json.document(asdict(dry_run_report)) if json else dry_run_text(dry_run_report))
            return
        from capaft.commands.summary import run_summary
        from capaft.training.run import execute_run

        unwind_from_here()
        with _naming(labels):
            results = execute_run(settings, console, sys.argv[1:], labels)
        if is_first_process():
            print(strict_json.document(results.record()) if json else run_summary(results))


@contextmanager
def _naming(labels: dict[str, str]) -> Iterator[None]:
    """Has errors name the settings as the user did, who may have set variables or lines of a file."""
    try:
        yield
    except CapaftError as error:
        error.args = (with_labels(str(error), labels),)
        raise


def _resolve(
    flags: dict[str, str | bool | list[str] | None], config: Path | None, preset: str | None
) -> tuple[TrainConfig, dict[str, str]]:
    """The settings, from all sources, and the user's names for those that the user set.

    Raises:
        UsageError: a setting is wrong, or a file or preset does not exist.
    """
    if config is not None and not config.is_file():
        raise UsageError(f"--config {config}: no such file; name a YAML file of settings")
    published = preset_file(preset) if preset else None
    settings, sources = resolve_settings(TrainConfig, flags=flags, environ=os.environ, file=config, preset=published)
    if settings.resume and settings.output:
        from capaft.training.record.run_directory import started_config

        if begun := started_config(settings.output):
            # The run goes on with its own settings, except for those that the command sets.
            settings, sources = resolve_settings(
                TrainConfig, flags=flags, environ=os.environ, file=config, preset=published, begun=begun
            )
    is_saved = config is not None and config.read_text(encoding="utf-8-sig").startswith(MADE_BY)
    # The choices in the file of a run are capaft's own.
    return settings, user_labels(settings, sources, None if is_saved else config)
