"""`capaft serve`: a directory of adapters behind HTTP."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from capaft.commands.libraries import loading_libraries
from capaft.commands.reporting import reporting
from capaft.config.serve_options import ServeOptions
from capaft.config.signature import signature
from capaft.config.sources import resolve_settings
from capaft.support.console import print_line
from capaft.support.errors import UsageError

_NEEDED = ("starlette", "uvicorn", "prometheus_client")


@signature(ServeOptions)
def serve_command(
    directory: Annotated[Path, typer.Argument(help="A directory of adapter files.", metavar="DIR")],
    **flags: str | bool | list[str] | None,
) -> None:
    """Serve a bank of adapters over HTTP; each request names its adapter."""
    with reporting() as console:
        options, _ = resolve_settings(ServeOptions, flags=flags, environ={})
        options.token()
        if missing := [name for name in _NEEDED if find_spec(name) is None]:
            raise UsageError(f"capaft serve needs {missing[0]}; pip install 'capaft[serve]'")
        with loading_libraries(console):
            from capaft.inference.bank.directory import BankDirectory
            from capaft.inference.serving.server import serve
        serve(BankDirectory(directory), options, partial(print_line, console))
