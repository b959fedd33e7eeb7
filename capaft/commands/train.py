"""`capaft train`: train an adapter."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from capaft.commands.libraries import loading_libraries
from capaft.commands.reporting import Json, reporting
from capaft.config.completion import complete_preset
from capaft.config.signature import signature
from capaft.config.sources import dump_settings, with_labels
from capaft.config.train_config import TrainConfig
from capaft.support import strict_json
from capaft.support.activity import activity
from capaft.support.console import is_first_process, print_line, print_result
from capaft.support.errors import CapaftError, TrainingError, UsageError
from capaft.support.signals import unwind_from_here
from capaft.training.setup.resolved_run import ResolvedRun, resolve_run

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
        resolved = resolve_run(flags, os.environ, config, preset, notes.append)
        settings = resolved.settings
        if not (dry_run or print_config):
            from capaft.training.parallel.launch import follow_launcher, launch_processes, should_launch

            if should_launch(settings.processes):
                # The first of them says what there is to say.
                raise typer.Exit(launch_processes(settings.processes, sys.argv[1:]))
            follow_launcher()
        for line in notes:
            print_line(console, line)
        if dry_run:
            text = _plan(console, resolved, as_json=json, as_config=print_config)
        elif print_config:
            text = dump_settings(settings)
        else:
            text, output = _train(console, resolved, as_json=json)
        if is_first_process():
            print_result(text)
            if repository and not (dry_run or print_config):
                _push(console, output, repository, private=private)


def _plan(console: Console, resolved: ResolvedRun, *, as_json: bool, as_config: bool) -> str:
    """Plan a run; what to print of it."""
    with loading_libraries(console):
        from capaft.commands.dry_run import describe_run, dry_run_text

    unwind_from_here()
    say = partial(print_line, console)
    for line in resolved.named:
        say(line)
    with _naming(resolved.labels), activity(console, "planning the run"):
        plan = describe_run(resolved.settings, say, resolved.labels)
    if as_config:
        return plan.config
    return strict_json.document(asdict(plan)) if as_json else dry_run_text(plan)


def _train(console: Console, resolved: ResolvedRun, *, as_json: bool) -> tuple[str, str]:
    """Train; what to print of the results, and the run's directory."""
    with loading_libraries(console):
        from capaft.commands.summary import run_summary
        from capaft.training.run import execute_run

    unwind_from_here()
    with _naming(resolved.labels):
        results = execute_run(resolved, console)
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
    from capaft.exchange.hub_upload import check_name, check_permitted, check_pushable

    if only_named or not is_first_process():
        return check_name(push, "--push")
    repository = check_pushable(push)
    check_permitted(repository)
    return repository


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
def _naming(labels: Mapping[str, str] | None) -> Iterator[None]:
    """Has errors name the settings as the user did, who may have set variables or lines of a file."""
    try:
        yield
    except CapaftError as error:
        error.respell(lambda line: with_labels(line, labels or {}))
        raise
