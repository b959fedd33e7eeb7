"""Ranges that several settings share; see `Check` in `settings.py`."""

from __future__ import annotations

from capaft.config.settings import Check

POSITIVE: Check = ("greater than 0", lambda value: value > 0)
# Far above any useful rate, and far below the limit of float32, which optimizers cannot exceed.
RATE: Check = ("in (0, 1000]", lambda value: 0 < value <= 1000)
# A month, far below what a timer can hold.
TIMEOUT: Check = ("in [1, 2592000]", lambda value: 1 <= value <= 2592000)
FRACTION: Check = ("in [0, 1)", lambda value: 0 <= value < 1)


def at_least(low: int) -> Check:
    """The range of numbers that are at least `low`."""
    return (f"at least {low}", lambda value: value >= low)
