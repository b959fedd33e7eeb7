"""Lines for people, on stderr, and results, on stdout. Whatever is shown leaves here."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from capaft.support.printable import printable

if TYPE_CHECKING:
    from rich.console import Console


def print_line(console: Console, line: str) -> None:
    """Print one line: neither wrapped, nor coloured, nor read as markup, and with control characters as escapes."""
    console.print(printable(line), highlight=False, markup=False, emoji=False, soft_wrap=True)


def say_nothing(line: str) -> None:
    """Print no line, where a function wants to say what it decides."""


def print_note(line: str) -> None:
    """Print one line on stderr, where there is no console."""
    print(printable(line), file=sys.stderr, flush=True)


def print_error(line: str) -> None:
    """Print an error on stderr, where there is no console."""
    print_note(f"error: {line}")


def print_result(text: str) -> None:
    """Print lines on stdout, with control characters as escapes."""
    print("\n".join(map(printable, text.rstrip("\n").split("\n"))))


def print_records(records: Iterable[Any]) -> None:
    """Print records on stdout, a line of JSON each, at once: whoever reads them may be waiting."""
    from capaft.support import strict_json

    sys.stdout.write(strict_json.shown_lines(records, sys.stdout.encoding or "utf-8"))
    sys.stdout.flush()


def print_piece(text: str) -> None:
    """Print a part of a text on stdout at once, with its line breaks and tabs, and other control characters escaped."""
    shown = re.sub(r"[^\n\t]+", lambda run: printable(run.group()), text)
    print(shown, end="", flush=True)


def is_first_process() -> bool:
    """True for the process that reports for all that train together."""
    return os.environ.get("RANK", "0") == "0"


class _Dispensable(io.FileIO):
    """A stream whose reader may go away, as a closed terminal or `head` does."""

    def write(self, data: Any) -> int:
        """Write what can be written; the remainder is lost."""
        try:
            return super().write(data)
        except OSError:
            return len(data)


def hold_standard_streams() -> None:
    """Point standard streams that were closed at nothing, so that no file that is opened later gets their numbers."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            handle = os.open(os.devnull, os.O_RDWR)
            if handle != number:
                os.dup2(handle, number)
                os.close(handle)
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False))


def outlive_stderr() -> None:
    """Have this process go on when nobody can read its stderr any more."""
    if sys.stderr is not None and sys.stderr.fileno() == 2:
        stream = io.BufferedWriter(_Dispensable(2, "w", closefd=False))
        sys.stderr = io.TextIOWrapper(stream, sys.stderr.encoding, "backslashreplace", line_buffering=True)
