"""`capaft predict`: the answers of a finished adapter to rows without labels."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from capaft.commands.libraries import loading_libraries
from capaft.commands.reporting import OptionalRun, reporting
from capaft.config.open_options import PredictOptions
from capaft.config.signature import signature
from capaft.config.sources import resolve_settings
from capaft.support.activity import activity
from capaft.support.console import print_line, print_result
from capaft.support.counting import agreeing, counted
from capaft.support.errors import TrainingError, UsageError
from capaft.support.files import check_apart, check_writable
from capaft.support.signals import unwind_from_here


@signature(PredictOptions)
def predict_command(run: OptionalRun = None, **flags: str | bool | list[str] | None) -> None:
    """Predict for rows without labels, one record each, as JSON lines or CSV."""
    with reporting() as console:
        options, _ = resolve_settings(PredictOptions, flags=flags, environ={})
        check_writable("--output", options.output)
        with loading_libraries(console):
            from capaft.inference.predicting import check_rows, predict_run
            from capaft.training.record.run_directory import RunDirectory
            from capaft.training.record.saved_run import open_run

        if (run is None) is (options.bank is None):
            raise UsageError("name one RUN, or a directory of adapters with --bank")
        check_rows(options)
        files: list[str | Path] = [] if run is None else [run, *RunDirectory(Path(run).expanduser()).irreplaceable()]
        check_apart("--output", options.output, options.data, options.bank, *files)
        unwind_from_here()

        def say(line: str) -> None:
            print_line(console, f"data   {line}")

        if run is None:
            from capaft.inference.bank.asking import predict_bank

            result = predict_bank(options, say=say, console=console)
        else:
            with activity(console, "loading the base model and the adapter"):
                saved = open_run(run, options, partial(print_line, console))
            result = predict_run(saved, options, say=say, console=console)
        if options.output:
            print_result(f"{counted(result.rows, 'record')} in {options.output}")
        if result.errors:
            have, their = agreeing(result.errors, "has", "have"), agreeing(result.errors, "its", "their")
            raise TrainingError(
                f"{result.errors} of {counted(result.rows, 'row')} {have} no answer ({result.first_error}); "
                f"{their} {agreeing(result.errors, 'record says', 'records say')} why in `error`"
            )
