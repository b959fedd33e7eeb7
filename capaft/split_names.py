"""How the name of a file or directory says which split it holds, and which of the splits validates."""

from __future__ import annotations

import re
from collections.abc import Collection

TRAIN = "train"
VALIDATION = "validation"
# The first of these that a source has is its validation split.
VALIDATION_NAMES = (VALIDATION, "validation_matched", "valid", "val", "dev", "test")

_ROLE = re.compile(r"train|valid|val(?![a-z])|dev|test")


def role(name: str) -> str | None:
    """The split that a name begins with, be it `Validation-v1.1` or `train-00000-of-00002.parquet`, if it does."""
    match = _ROLE.match(name.lower())
    if match is None or "mismatched" in name.lower():
        return None
    return VALIDATION if match[0].startswith("val") else match[0]


def validation_name(names: Collection[str]) -> str | None:
    """The one that is the validation split, if any is."""
    return next((name for name in VALIDATION_NAMES if name in names), None)
