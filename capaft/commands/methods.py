"""`capaft methods`: the methods, their options, and the counts of each on a model."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from capaft.commands.libraries import loading_libraries
from capaft.commands.reporting import Json, reporting, suggest
from capaft.support import strict_json
from capaft.support.console import print_result


def methods_command(
    model: Annotated[
        str | None,
        typer.Option(
            "--model", help="Model on which to count trainable parameters; its weights are not read.", metavar="DIR|ID"
        ),
    ] = None,
    json: Json = False,
) -> None:
    """List the methods, their options and what they compose with."""
    with reporting() as console:
        with loading_libraries(console):
            from capaft.commands.method_table import method_rows, methods_text
            from capaft.model.load import load_skeleton

        base = None if model is None else load_skeleton(model)
        if json:
            print_result(strict_json.document(method_rows(base)))
            return
        print_result(methods_text(base))
        on_model = f" --model {shlex.quote(model)}" if model else ""
        suggest(console, f"capaft train --method capaboost{on_model} --dry-run")
