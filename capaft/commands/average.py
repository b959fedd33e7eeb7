"""`capaft average`: one adapter file with the averaged parameters of several."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from capaft.commands.import_peft import checked_output
from capaft.commands.libraries import loading_libraries
from capaft.commands.reporting import Json, Runs, reporting, suggest
from capaft.config.open_options import AverageOptions
from capaft.config.signature import signature
from capaft.config.sources import resolve_settings
from capaft.support import strict_json
from capaft.support.console import print_result
from capaft.support.counting import counted


@signature(AverageOptions)
def average_command(
    run: Runs,
    output: Annotated[Path, typer.Option("--output", help="Adapter file to write, ending in .safetensors.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace that file.")] = False,
    json: Json = False,
    **flags: str | bool | list[str] | None,
) -> None:
    """Average adapters that share their seed and method."""
    with reporting() as console:
        options, _ = resolve_settings(AverageOptions, flags=flags, environ={})
        path = checked_output(output, overwrite=overwrite)
        with loading_libraries(console):
            from capaft.adapter.file.average import average
            from capaft.training.record.next_commands import command_to_describe
            from capaft.training.record.saved_run import read_run

        size = average([read_run(name).file for name in run], path, weights=options.weights)
        if json:
            print_result(strict_json.document({"output": str(output), "adapters": len(run), "bytes": size}))
            return
        print_result(f"averaged {counted(len(run), 'adapter')} into {output}, {size:,} bytes")
        suggest(console, command_to_describe(str(output)))
