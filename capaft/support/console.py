"""Lines for people, on stderr."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def print_line(console: Console, line: str) -> None:
    """Print a line as it is: neither wrapped, nor coloured, nor read as markup."""
    console.print(line, highlight=False, markup=False, soft_wrap=True)
