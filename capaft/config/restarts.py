"""The steps of a run at which its schedule starts anew, as it does where a finished run was extended."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Restart:
    """A step at which the schedule starts anew.

    Attributes:
        step: optimizer steps before it.
        planned: the step at which the schedule before it was to end; later than `step` if that run stopped early.
    """

    step: int
    planned: int

    def __str__(self) -> str:
        return str(self.step) if self.step == self.planned else f"{self.step}/{self.planned}"


def parse_restarts(entries: Sequence[str]) -> tuple[Restart, ...]:
    """Parse entries such as `24` or `24/40`, each a step and, if they differ, the step planned as the end.

    Raises:
        ValueError: an entry is anything else, or the steps do not ascend.
    """
    restarts: list[Restart] = []
    for entry in entries:
        if not (match := re.fullmatch(r"([1-9][0-9]{0,11})(?:/([1-9][0-9]{0,11}))?", entry)):
            raise ValueError(f"{entry!r} is no step")
        restart = Restart(int(match[1]), int(match[2] or match[1]))
        if restart.planned < restart.step or (restarts and restart.step <= restarts[-1].step):
            raise ValueError("the steps do not ascend")
        restarts.append(restart)
    return tuple(restarts)


def are_restarts(entries: Sequence[str]) -> bool:
    """True if entries can be parsed."""
    try:
        parse_restarts(entries)
    except ValueError:
        return False
    return True
