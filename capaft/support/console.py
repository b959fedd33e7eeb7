"""Lines for people, on stderr, and results, on stdout. Whatever is shown leaves here."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from capaft.support.printable import printable

if TYPE_CHECKING:
    from rich.console import Console


def print_line(console: Console, line: str) -> None:
    """Print one line: neither wrapped, nor coloured, nor read as markup, and with control characters as escapes."""
    console.print(printable(line), highlight=False, markup=False, emoji=False, soft_wrap=True)


def print_error(line: str) -> None:
    """Print one line on stderr, where there is no console."""
    print(f"error: {printable(line)}", file=sys.stderr, flush=True)


def print_result(text: str) -> None:
    """Print lines on stdout, with control characters as escapes."""
    print("\n".join(map(printable, text.rstrip("\n").split("\n"))))
