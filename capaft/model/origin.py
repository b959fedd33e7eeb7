"""Where a base model came from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Origin:
    """Where the base model came from, as the user named it."""

    name: str | None = None
    revision: str | None = None
