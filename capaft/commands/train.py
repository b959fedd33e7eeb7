"""`capaft train`: train an adapter."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from capaft.commands.libraries import loading_libraries
from capaft.commands.reporting import Json, reporting
from capaft.config.completion import complete_preset
from capaft.config.local_paths import LocalPaths
from capaft.config.presets import preset_file
from capaft.config.signature import signature
from capaft.config.sources import MADE_BY, dump_settings, resolve_settings, user_labels, with_labels
from capaft.config.train_config import TrainConfig
from capaft.support import strict_json
from capaft.support.activity import activity
from capaft.support.console import is_first_process, print_line, print_result, say_nothing
from capaft.support.errors import CapaftError, TrainingError, UsageError
from capaft.support.paths import named_path
from capaft.support.signals import unwind_from_here

if TYPE_CHECKING:
    from rich.console import Console

    from capaft.exchange.hub_names import HubName


@signature(TrainConfig)
def train_command(
    config: Annotated[Path | None, typer.Option("--config", help="YAML file of settings.")] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            help="Published experiment whose settings to use; `capaft presets` lists them.",
            metavar="<name>",
            autocompletion=complete_preset,
        ),
    ] = None,
    push: Annotated[
        str | None,
        typer.Option("--push", help="Upload the finished run to this repository of the hub.", metavar="<user/name>"),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository of --push private.")] = False,
    json: Json = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Resolve everything, train nothing, and summarise the plan.")
    ] = False,
    print_config: Annotated[
        bool,
        typer.Option(
            "--print-config", help="Print the settings as YAML and stop; with --dry-run, every open choice filled in."
        ),
    ] = False,
    **flags: str | bool | list[str] | None,
) -> None:
    """Train an adapter. Without arguments: a real job on an embedded model and data set."""
    with reporting() as console:
        notes: list[str] = []
        repository = _repository(push, private=private, only_named=dry_run or print_config)
        settings, labels, named = _resolve(flags, config, preset, notes.append)
        if not (dry_run or print_config):
            from capaft.training.parallel.launch import follow_launcher, launch_processes, should_launch

            if should_launch(settings.processes):
                # The first of them says what there is to say.
                raise typer.Exit(launch_processes(settings.processes, sys.argv[1:]))
            follow_launcher()
        for line in notes:
            print_line(console, line)
        if dry_run:
            text = _plan(console, settings, labels, named, as_json=json, as_config=print_config)
        elif print_config:
            text = dump_settings(settings)
        else:
            paths = LocalPaths.beside(config) if config else None
            text, output = _train(console, settings, labels, named, paths, as_json=json)
        if is_first_process():
            print_result(text)
            if repository and not (dry_run or print_config):
                _push(console, output, repository, private=private)


def _plan(
    console: Console,
    settings: TrainConfig,
    labels: dict[str, str],
    named: Sequence[str],
    *,
    as_json: bool,
    as_config: bool,
) -> str:
    """Plan a run; what to print of it."""
    with loading_libraries(console):
        from capaft.commands.dry_run import describe_run, dry_run_text

    unwind_from_here()
    say = partial(print_line, console)
    for line in named:
        say(line)
    with _naming(labels), activity(console, "planning the run"):
        plan = describe_run(settings, say, labels)
    if as_config:
        return plan.config
    return strict_json.document(asdict(plan)) if as_json else dry_run_text(plan)


def _train(
    console: Console,
    settings: TrainConfig,
    labels: dict[str, str],
    named: Sequence[str],
    paths: LocalPaths | None,
    *,
    as_json: bool,
) -> tuple[str, str]:
    """Train; what to print of the results, and the run's directory."""
    with loading_libraries(console):
        from capaft.commands.summary import run_summary
        from capaft.training.run import execute_run

    unwind_from_here()
    with _naming(labels):
        results = execute_run(settings, console, labels, paths, named)
    return strict_json.document(results.record()) if as_json else run_summary(results), results.output


def _repository(push: str | None, *, private: bool, only_named: bool) -> HubName | None:
    """The repository of `--push`, before a run is spent on it.

    Raises:
        UsageError: it is no name of one, or nothing can be pushed now.
    """
    if push is None:
        if private:
            raise UsageError("--private is for the repository of --push; name one, or drop it")
        return None
    from capaft.exchange.hub_upload import check_name, check_pushable

    return check_name(push, "--push") if only_named or not is_first_process() else check_pushable(push)


def _push(console: Console, output: str, repository: HubName, *, private: bool) -> None:
    """Upload a finished run, and say how to do it again if that fails."""
    from capaft.commands.push import push, pushed_line

    try:
        pushed = push(console, output, repository, private=private)
    except CapaftError as error:
        again = f"capaft push {shlex.quote(output)} {repository}{' --private' if private else ''}"
        raise TrainingError(f"the run is complete, but {error}; then push it with: {again}") from None
    print_line(console, pushed_line(pushed))


@contextmanager
def _naming(labels: dict[str, str]) -> Iterator[None]:
    """Has errors name the settings as the user did, who may have set variables or lines of a file."""
    try:
        yield
    except CapaftError as error:
        error.respell(lambda line: with_labels(line, labels))
        raise


def _resolve(
    flags: dict[str, str | bool | list[str] | None],
    config: Path | None,
    preset: str | None,
    say: Callable[[str], None] = say_nothing,
) -> tuple[TrainConfig, dict[str, str], list[str]]:
    """The settings, from all sources, the user's names for those that the user set, and lines about what files name.

    Args:
        flags: those that were typed.
        config: the user's file.
        preset: name of a published experiment.
        say: called with a line for each permission that a file claims.

    Raises:
        UsageError: a setting is wrong, or a file or preset does not exist.
    """
    if config is not None and not named_path("--config", config).is_file():
        raise UsageError(f"--config {config}: no such file; name a YAML file of settings")
    published = preset_file(preset) if preset else None
    resolve = partial(resolve_settings, TrainConfig, flags=flags, environ=os.environ, file=config, preset=published)
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
    return settings, user_labels(settings, sources, None if is_saved else config), named
