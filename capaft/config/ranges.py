"""The ranges that several settings share; see `Check` in `settings.py`."""

from __future__ import annotations

from capaft.config.settings import Check

POSITIVE: Check = ("greater than 0", lambda value: value > 0)
# Far more than learns anything, and far less than float32 can hold: optimizers cannot take more.
RATE: Check = ("in (0, 1000]", lambda value: 0 < value <= 1000)
FRACTION: Check = ("in [0, 1)", lambda value: 0 <= value < 1)


def at_least(low: int) -> Check:
    """The range from a number on."""
    return (f"at least {low}", lambda value: value >= low)
