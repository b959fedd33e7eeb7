"""`capaft merge`: base and adapters as one plain Hugging Face directory, independent of capaft."""

from __future__ import annotations

import shlex
import time
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from capaft.commands.libraries import loading_libraries
from capaft.commands.reporting import Json, Runs, reporting, suggest
from capaft.config.open_options import MergeOptions
from capaft.config.signature import signature
from capaft.config.sources import resolve_settings
from capaft.support import strict_json
from capaft.support.activity import activity
from capaft.support.console import print_line, print_result
from capaft.support.counting import counted
from capaft.support.paths import named_path
from capaft.support.signals import unwind_from_here


@signature(MergeOptions)
def merge_command(
    run: Runs,
    output: Annotated[str, typer.Option("--output", help="Directory to write the merged model to.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the model in the output directory.")] = False,
    json: Json = False,
    **flags: str | bool | list[str] | None,
) -> None:
    """Write base and adapter as one plain model directory."""
    with reporting() as console:
        options, _ = resolve_settings(MergeOptions, flags=flags, environ={})
        with loading_libraries(console):
            from capaft.exchange.merged_directory import check_output
            from capaft.exchange.probe import NoProbe
            from capaft.inference.merge_check import rounding_line
            from capaft.inference.merging import Merge
            from capaft.model.origin import literal

        path = named_path("--output", output)
        check_output(output, path, overwrite=overwrite)
        unwind_from_here()
        started = time.perf_counter()
        with activity(console, "loading the base model and the adapter"):
            merge = Merge.open(run, options, partial(print_line, console))
        with activity(console, f"merging into {output}"):
            sites = merge.write(output, path, overwrite=overwrite)
        results: dict[str, Any] = {"output": output, "sites": sites}
        difference = None
        if options.verify:
            with activity(console, "asking both models the same"):
                try:
                    difference = merge.verify(path)
                except NoProbe as reason:
                    print_line(console, f"not verified: {reason}")
        results["largest_difference"] = difference and difference.largest
        results["relative_difference"] = difference and difference.relative
        rounded = rounding_line(merge.rounding)
        results["rounding_error"] = merge.rounding.error
        results["largest_rounding_error"] = max(merge.rounding.by_layer.values(), default=0.0)
        results["seconds"] = round(time.perf_counter() - started, 3)
        if json:
            print_result(strict_json.document(results))
            return
        print_result(f"merged {counted(sites, 'site') if sites else 'the trained parameters'} into {output}")
        if rounded or options.quantised == "dequantise":
            print_result(rounded or "rounding: none, each sum of weight and update is written in full")
        if difference:
            share = f"{difference.relative:.1e} of the largest output; up to {difference.allowed:.1e} is rounding"
            print_result(f"verified: outputs differ by {difference.largest:.2g} at most, {share}")
        directory = literal(str(Path(output).expanduser()))
        loads = f"from transformers import {merge.auto_class}; {merge.auto_class}.from_pretrained({directory})"
        suggest(console, f"python -c {shlex.quote(loads)}")
