"""`capaft eval`: score a saved adapter."""

from __future__ import annotations

from dataclasses import asdict

from capaft.commands.reporting import Json, Run, quiet_libraries, reporting
from capaft.commands.summary import evaluation_summary
from capaft.config.open_options import EvalOptions
from capaft.config.signature import signature
from capaft.config.sources import resolve_settings
from capaft.support import strict_json
from capaft.support.console import print_line
from capaft.support.files import check_writable
from capaft.support.signals import unwind_from_here


@signature(EvalOptions)
def eval_command(run: Run, json: Json = False, **flags: str | bool | list[str] | None) -> None:
    """Score a saved adapter."""
    with reporting() as console:
        options, _ = resolve_settings(EvalOptions, flags=flags, environ={})
        check_writable("--predictions", options.predictions)
        quiet_libraries(console)
        from capaft.training.record.saved_run import open_run
        from capaft.training.scoring import score_run

        unwind_from_here()
        saved = open_run(run, options)
        scores = score_run(saved, options, say=lambda line: print_line(console, f"data   {line}"))
        print(strict_json.document(asdict(scores)) if json else evaluation_summary(scores, options.predictions))
