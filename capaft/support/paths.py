"""Paths that a user names, of which some can belong to no file."""

from __future__ import annotations

from pathlib import Path

from capaft.support.errors import UsageError
from capaft.support.printable import printable


def named_path(option: str, name: str | Path) -> Path:
    """The path that a user means, whether or not there is something.

    Args:
        option: the flag or argument, for messages.
        name: the user's text; `~` is the home directory.

    Raises:
        UsageError: nothing can be there: the name is too long or has a null character, links lead in a circle, or a
            directory on the way is closed to this user.
    """
    try:
        path = Path(name).expanduser()
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return path
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{option} {shown_path(name)}: {reason}; choose another path") from None
    return path


def shown_path(name: str | Path) -> str:
    """A name as a message shows it: on one line, and not all of a very long one."""
    shown = printable(str(name))
    return shown if len(shown) <= 200 else f"{shown[:120]} ... {shown[-40:]}"
