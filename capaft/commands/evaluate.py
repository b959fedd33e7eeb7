"""`capaft eval`: score a saved adapter."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path

from capaft.commands.libraries import loading_libraries
from capaft.commands.reporting import Json, Run, reporting, suggest
from capaft.commands.summary import evaluation_summary
from capaft.config.open_options import EvalOptions
from capaft.config.signature import signature
from capaft.config.sources import resolve_settings
from capaft.support import strict_json
from capaft.support.activity import activity
from capaft.support.console import print_line, print_result
from capaft.support.files import check_apart, check_writable
from capaft.support.signals import unwind_from_here


@signature(EvalOptions)
def eval_command(run: Run, json: Json = False, **flags: str | bool | list[str] | None) -> None:
    """Score a saved adapter."""
    with reporting() as console:
        options, _ = resolve_settings(EvalOptions, flags=flags, environ={})
        check_writable("--predictions", options.predictions)
        with loading_libraries(console):
            from capaft.training.record.next_commands import command_to_describe, command_to_merge, command_to_try
            from capaft.training.record.run_directory import RunDirectory
            from capaft.training.record.saved_run import open_run
            from capaft.training.scoring import score_run

        files = RunDirectory(Path(run).expanduser()).irreplaceable()
        check_apart("--predictions", options.predictions, options.data, run, *files)
        unwind_from_here()
        with activity(console, "loading the base model and the adapter"):
            saved = open_run(run, options, partial(print_line, console))
        scores = score_run(saved, options, say=lambda line: print_line(console, f"data   {line}"), console=console)
        if json:
            print_result(strict_json.document(asdict(scores)))
            return
        print_result(evaluation_summary(scores, options.predictions))
        output = f"{saved.run.path}/merged" if saved.run and Path(run).expanduser().exists() else "merged"
        stack, quantised = saved.file.header.method, saved.base.is_quantised
        has_pairs = bool(saved.config and saved.config.pair_column)
        suggest(
            console,
            command_to_try(run, saved.task, options, has_pairs=has_pairs),
            command_to_merge(run, output, stack, options, quantised=quantised) or command_to_describe(run),
        )
