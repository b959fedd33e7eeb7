"""The frame of every verb: errors become one line and an exit code, and the last line says what to do next."""

from __future__ import annotations

import io
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from capaft.support.console import is_first_process, print_error, print_line
from capaft.support.errors import CapaftError, Interrupted, TrainingError, one_line
from capaft.support.out_of_memory import ADVICE, is_out_of_memory
from capaft.support.printable import printable
from capaft.support.signals import unwinding

if TYPE_CHECKING:
    from rich.console import Console

_RUN = typer.Argument(
    help="A run directory, an adapter file, a PEFT directory, or USER/NAME on the hub.", metavar="RUN"
)
Run = Annotated[str, _RUN]
OptionalRun = Annotated[str | None, _RUN]
Runs = Annotated[
    list[str],
    typer.Argument(help="Run directories, adapter files, PEFT directories, or USER/NAME on the hub.", metavar="RUN"),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]


@contextmanager
def reporting() -> Iterator[Console]:
    """Turns capaft's own errors into a line on stderr and an exit code; yields the console of stderr."""
    from rich.console import Console

    # Where several train together, one of them speaks for all.
    console = Console(stderr=True, quiet=not is_first_process())
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
            for line in error.args:
                _say(console, f"{prefix}{line}")
        raise typer.Exit(error.exit_code) from None


def _reported(raised: BaseException) -> CapaftError | None:
    """The error to report for what was raised; None if it is nothing that capaft foresees."""
    if isinstance(raised, Interrupted):
        return raised
    # While a process stops, whatever fails does so because of that: a library may have wrapped the interruption.
    if stopped := unwinding() or (isinstance(raised, KeyboardInterrupt) and (str(raised) or "stopped by Ctrl-C")):
        return Interrupted(stopped)
    if isinstance(raised, CapaftError):
        return raised
    return _exhaustion(raised) if is_out_of_memory(raised) else None


def _exhaustion(raised: BaseException) -> TrainingError:
    """The error about memory that ran out; makes room to report it."""
    # What the failed functions still hold is needed to say so.
    traceback.clear_frames(raised.__traceback__)
    # Libraries that clean up at exit run out of memory as well.
    sys.unraisablehook = _leave_out_exhaustion
    return TrainingError(f"out of memory; {ADVICE}")


def _say(console: Console, line: str) -> None:
    """Print a line that every process may print, also where no memory is left for the console's modules."""
    console.quiet = False
    try:
        print_line(console, line)
    except MemoryError:
        print_error(line.removeprefix("error: "))


def _leave_out_exhaustion(ignored: Any) -> None:
    """Report an error that no code can catch, unless it is one more of memory; a hook of the interpreter."""
    if not is_out_of_memory(ignored.exc_value):
        sys.__unraisablehook__(ignored)


def unexpected(error: BaseException) -> str:
    """The line about an error that nobody foresaw; its traceback is kept in a file, since it may have taken hours."""
    import tempfile

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


def suggest(console: Console, *commands: str | None) -> None:
    """Say on stderr what to do next, as commands to paste."""
    for command in filter(None, commands):
        print_line(console, f"next: {command}")
