"""What a command is busy with: a live line on a terminal, nothing of it elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from capaft.support.activity import activity


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=60)


def test_a_terminal_shows_what_goes_on_and_how_far_it_is() -> None:
    console = terminal()
    with activity(console, "fitting [the] head", total=8) as advance:
        advance(2)
    assert "fitting [the] head" in shown(console)
    assert "25%" in shown(console)


def test_without_a_terminal_it_shows_nothing() -> None:
    console = Console(file=io.StringIO(), width=60)
    with activity(console, "loading"), activity(console, "reading", total=3) as advance:
        advance(3)
    assert shown(console) == ""


def test_it_ends_with_what_it_is_about() -> None:
    console = terminal()
    with pytest.raises(ValueError, match="broken"), activity(console, "reading"):
        raise ValueError("broken")
    with activity(console, "fitting"):
        pass
    assert "fitting" in shown(console)


def test_a_quiet_console_shows_nothing() -> None:
    console = terminal()
    console.quiet = True
    with activity(console, "reading"):
        pass
    assert shown(console) == ""
