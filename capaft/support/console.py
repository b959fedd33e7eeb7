"""Lines for people, on stderr."""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def print_line(console: Console, line: str) -> None:
    """Print a line as it is: neither wrapped, nor coloured, nor read as markup."""
    console.print(line, highlight=False, markup=False, soft_wrap=True)


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


def outlive_stderr() -> None:
    """Have this process go on when nobody can read its stderr any more."""
    if sys.stderr is not None and sys.stderr.fileno() == 2:
        stream = io.BufferedWriter(_Dispensable(2, "w", closefd=False))
        sys.stderr = io.TextIOWrapper(stream, sys.stderr.encoding, "backslashreplace", line_buffering=True)
