"""Words agree with their number."""

from __future__ import annotations

from capaft.support.counting import agreeing


def test_one_thing_is_singular_and_all_other_numbers_are_plural() -> None:
    assert [agreeing(count, "is", "are") for count in (0, 1, 2)] == ["are", "is", "are"]
