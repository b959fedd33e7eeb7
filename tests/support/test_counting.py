"""Words agree with their number."""

from __future__ import annotations

from capaft.support.counting import agreeing, counted


def test_one_thing_is_singular_and_all_other_numbers_are_plural() -> None:
    assert [agreeing(count, "is", "are") for count in (0, 1, 2)] == ["are", "is", "are"]


def test_a_number_stands_before_its_word() -> None:
    assert [counted(count, "row") for count in (0, 1, 1234)] == ["0 rows", "1 row", "1,234 rows"]
    assert [counted(count, "class", "classes") for count in (1, 2)] == ["1 class", "2 classes"]
