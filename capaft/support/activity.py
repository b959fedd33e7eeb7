"""What a command is busy with, as a live line on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


@contextmanager
def activity(console: Console, text: str, *, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """Show what goes on for as long as the context lasts: a spinner, or a bar if it is known how much there is to do.

    Elsewhere than on a terminal it shows nothing. Lines printed meanwhile appear above it.

    Args:
        console: where people read.
        text: what goes on, such as "loading the model".
        total: number of parts, if there are parts.

    Yields:
        A function that is called with the number of parts that have just been done.
    """
    if not console.is_terminal or console.quiet:
        yield lambda parts: None
        return
    from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn

    bar = () if total is None else (BarColumn(bar_width=None), TaskProgressColumn(), TimeRemainingColumn(compact=True))
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), *bar)
    with Progress(*columns, console=console, transient=True, expand=total is not None) as progress:
        task = progress.add_task(text, total=total)
        yield lambda parts: progress.advance(task, parts)
