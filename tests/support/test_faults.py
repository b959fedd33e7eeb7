"""A few faults are named and left out, many are refused."""

from __future__ import annotations

import pytest

from capaft.support.errors import UsageError
from capaft.support.faults import leave_out


def test_a_few_are_named() -> None:
    said: list[str] = []
    leave_out([f"row {at}: odd" for at in range(7)], 40, "rows", strict=False, say=said.append)
    named = "; ".join(f"row {at}: odd" for at in range(5))
    assert said == [f"7 of 40 rows cannot be used and are left out: {named}; and 2 more"]


@pytest.mark.parametrize(("total", "strict", "message"), [(40, True, "--strict"), (3, False, "too many to leave out")])
def test_many_or_strict_is_refused(total: int, strict: bool, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        leave_out(["row 1: odd"], total, "rows", strict=strict, say=print)
