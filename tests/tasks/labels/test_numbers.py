"""Numbers that texts write: which are plain, which are numbers in another notation, which are whole."""

from __future__ import annotations

import pytest

from capaft.tasks.labels.numbers import is_number, is_whole, plain_number, whole_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3.5", 3.5),
        (" 3.5\n", 3.5),
        ("+1", 1.0),
        ("-.5", -0.5),
        ("5.", 5.0),
        ("1e-3", 0.001),
        ("2E5", 2e5),
        ("007", 7.0),
    ],
)
def test_plain_numbers(text: str, number: float) -> None:
    assert plain_number(text) == number
    assert is_number(text)


@pytest.mark.parametrize(
    "text", ["1,4", "1,234.5", "1.234,5", "12 000", "45%", "45 %", "$5", "5€", "\u22121.5", "1'000"]
)
def test_numbers_in_another_notation(text: str) -> None:
    assert plain_number(text) is None
    assert is_number(text)


@pytest.mark.parametrize(
    "text", ["", "good", "1.2.3", "2020-01-01", "5/5", "3 stars", "inf", "nan", "1_000", "0x10", "v1", "-"]
)
def test_words(text: str) -> None:
    assert plain_number(text) is None
    assert not is_number(text)


def test_whole_numbers() -> None:
    assert [is_whole(text) for text in ("1", " +1 ", "1.0", "007", "1.5", "1e3", "one")] == [True] * 4 + [False] * 3
    numbers = {"1": "1", " +1.0": "1", "-1": "-1", "-0": "0", "10.": "10", "007": None, "1.5": None, "x": None}
    assert {text: whole_number(text) for text in numbers} == numbers
