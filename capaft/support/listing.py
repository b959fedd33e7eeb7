"""Lists of names in a message, which stays one line however many there are."""

from __future__ import annotations

from collections.abc import Iterable

_LISTED = 20
_LONGEST = 60


def listed(names: Iterable[str], limit: int = _LISTED) -> str:
    """The first names, each cut if it is long, and the number of the others."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(map(shortened_name, names[:limit])) + more


def shortened_name(name: str) -> str:
    """A name, or its beginning."""
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 3]}..."
