"""The frame of every verb: errors become one line and an exit code, libraries keep quiet."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from capaft.support.console import print_line
from capaft.support.errors import CapaftError, Interrupted, TrainingError, one_line, printable

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
    except CapaftError as error:
        # An interruption is not an error; its message says where the run stopped.
        prefix = "" if isinstance(error, Interrupted) else "error: "
        # All processes of a run find the same usage error; a failure may be that of one process alone.
        if is_first_process() or type(error) is TrainingError:
            console.quiet = False
            for line in str(error).splitlines():
                print_line(console, f"{prefix}{line}")
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        print_line(console, "stopped by Ctrl-C")
        raise typer.Exit(130) from None


def unexpected(error: BaseException) -> str:
    """The line about an error that nobody foresaw; its traceback is kept in a file, since it may have taken hours."""
    import tempfile
    import traceback

    what = f"unexpected {type(error).__name__}: {printable(one_line(error))}"
    trace = "".join(traceback.format_exception(error))
    try:
        with tempfile.NamedTemporaryFile("w", prefix="capaft-", suffix=".txt", delete=False, errors="replace") as file:
            file.write(trace)
    except OSError:
        return f"{what}\n{trace}"
    return f"{what}; if the files of the model are in order, please report it, with {file.name}"


def escape_unprintable() -> None:
    """Have stdout and stderr escape what their encoding does not have, which is then in nobody's way."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


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
    # What these have to say, as of scores over one class, is about capaft's calls and not for its users.
    warnings.filterwarnings("ignore", module=r"(sklearn|scipy|torch\._weights_only_unpickler)\b")
    for name in ("huggingface_hub", "datasets", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)


def is_first_process() -> bool:
    """True for the process that reports for all that train together."""
    return os.environ.get("RANK", "0") == "0"
