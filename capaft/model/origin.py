"""Origin of a base model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Origin:
    """Name and revision of a base model, as the user gave them."""

    name: str | None = None
    revision: str | None = None
