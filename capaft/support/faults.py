"""A few faulty parts of the data: left out and named, or refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from capaft.support.counting import agreeing
from capaft.support.errors import UsageError

# Faults that a message names, and the share of the whole that may be left out.
_NAMED = 5
_FEW = 0.25


def leave_out(faults: Sequence[str], total: int, description: str, *, strict: bool, say: Callable[[str], None]) -> None:
    """Report what is left out: the number of faults, and the first of them.

    Args:
        faults: the faulty parts, at least one, each as its place and what is wrong there.
        total: number of all parts.
        description: of the parts, such as "training rows".
        strict: nothing may be left out.
        say: called with the report.

    Raises:
        UsageError: there are many, or one and `strict` is set.
    """
    more = f"; and {len(faults) - _NAMED} more" if len(faults) > _NAMED else ""
    first = "; ".join(faults[:_NAMED]) + more
    line = f"{len(faults)} of {total} {description} cannot be used"
    are, them = agreeing(len(faults), "is", "are"), agreeing(len(faults), "it", "them")
    if strict:
        raise UsageError(f"{line} ({first}); correct {them}, or drop --strict to leave {them} out")
    if len(faults) > _FEW * total:
        raise UsageError(f"{line}, too many to leave out ({first}); correct them or drop them from the data")
    say(f"{line} and {are} left out: {first}")
