"""The frame of every verb: errors become one line and an exit code, libraries keep quiet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from capaft.support.console import is_first_process, print_line
from capaft.support.errors import CapaftError, Interrupted, TrainingError
from capaft.support.signals import unwinding

if TYPE_CHECKING:
    from rich.console import Console

Run = Annotated[str, typer.Argument(help="A run directory or an adapter file.", metavar="RUN")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]


@contextmanager
def reporting() -> Iterator[Console]:
    """Turns capaft's own errors into a line on stderr and an exit code; yields the console of stderr."""
    from rich.console import Console

    console = Console(stderr=True)
    try:
        yield console
    except (Exception, KeyboardInterrupt) as raised:
        error = _reported(raised)
        if error is None:
            raise
        # An interruption is not an error; its message says where the run stopped.
        prefix = "" if isinstance(error, Interrupted) else "error: "
        # All processes of a run find the same usage error; a failure may be that of one process alone.
        if is_first_process() or type(error) is TrainingError:
            console.quiet = False
            for line in str(error).splitlines():
                print_line(console, f"{prefix}{line}")
        raise typer.Exit(error.exit_code) from None


def _reported(raised: BaseException) -> CapaftError | None:
    """The error to report for what was raised; None if it is nothing that capaft foresees."""
    if isinstance(raised, Interrupted):
        return raised
    # While a process stops, whatever fails does so because of that: a library may have wrapped the interruption.
    if stopped := unwinding() or (isinstance(raised, KeyboardInterrupt) and (str(raised) or "stopped by Ctrl-C")):
        return Interrupted(stopped)
    return raised if isinstance(raised, CapaftError) else None


def quiet_libraries(console: Console) -> None:
    """Keep the libraries' own reports off the screen, and show warnings as lines."""
    import logging
    import warnings

    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if issubclass(category, UserWarning) and not issubclass(category, (FutureWarning, DeprecationWarning)):
            print_line(console, f"warning: {message}")

    warnings.showwarning = show
    for name in ("huggingface_hub", "datasets", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)
