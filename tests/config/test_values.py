"""Values from text: every type's forms, and the texts that it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capaft.config.values import Count, Text, check_choice, metavar, parse_value, required_type


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (str, "no", "no"),
        (str, " none ", " none "),
        (str | None, "none", None),
        (str | None, "Null", None),
        (str | None, "", None),
        (str | None, " \t", None),
        (str | None, "nonesuch", "nonesuch"),
        (str | None, " none", " none"),
        (Path | None, " ", None),
        *((Text | None, text, text) for text in ("", " ", "\t", "\n\n", " || ", " none", "~ ", "nonesuch")),
        *((Text | None, text, None) for text in ("none", "NULL", "~")),
        (Text, "none", "none"),
        (int | None, " ", None),
        (int | None, " None ", None),
        (int, "8", 8),
        (int, " -3 ", -3),
        (int | None, "~", None),
        (Count, "50k", 50_000),
        (Count, "1.5M", 1_500_000),
        (Count, "1_000", 1_000),
        (Count, "7", 7),
        (Count | None, "50k", 50_000),
        (float, "5e-3", 0.005),
        (float, ".5", 0.5),
        (float, "3", 3.0),
        (float | None, "none", None),
        (bool, "true", True),
        (bool, "Yes", True),
        (bool, "on", True),
        (bool, "1", True),
        (bool, "FALSE", False),
        (bool, "no", False),
        (bool, "off", False),
        (bool, "0", False),
        (bool | None, "null", None),
        (Path, "a b/c", Path("a b/c")),
        (Literal["a", "b"], "b", "b"),
        (Literal["a", "b"] | None, "none", None),
        (tuple[str, ...], "q, v", ("q", "v")),
        (tuple[str, ...], ["q{1,2}"], ("q{1,2}",)),
        (tuple[int, ...], "512", (512,)),
        (tuple[int, ...], "512,256", (512, 256)),
        (tuple[int, ...], [], ()),
    ],
)
def test_parse(kind: Any, text: str | list[str], value: Any) -> None:
    parsed = parse_value(kind, text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        *((int, text) for text in ("3.0", "1_000", "50k", "", "0x10", "٣", "1e3", "none", "9" * 5000)),
        *((Count, text) for text in ("50K", "1.5", "0.0001k", "-5", "k", "", ".5k", "1e3", "9" * 500 + "k")),
        *((float, text) for text in ("nan", "inf", "-inf", "1e999", "1_0", "1,5", "", "٣", "0x1p3", "e3", ".")),
        *((bool, text) for text in ("", "2", "maybe", "truee")),
        *((kind, "") for kind in (str, Path)),
        *((Literal["a", "b"], text) for text in ("c", "A", "", "a,b")),
        *((tuple[int, ...], text) for text in ("1,,2", "1,", "", "1;2", ["1", "x"])),
        *((kind, ["1"]) for kind in (int, int | None, str, bool)),
    ],
)
def test_parse_refuses(kind: Any, text: str | list[str]) -> None:
    with pytest.raises(ValueError, match=r"^must "):
        parse_value(kind, text)


KINDS = st.sampled_from(
    [str, Text, Path, int, Count, float, bool, Literal["a", "b"], tuple[int, ...], float | None, Text | None]
)


@settings(deadline=None)
@given(KINDS, st.text() | st.text("0123456789.eEkM_+-,") | st.lists(st.text()))
def test_parse_answers_any_text_with_a_value_or_one_line(kind: Any, text: str | list[str]) -> None:
    try:
        parse_value(kind, text)
    except ValueError as error:
        assert str(error).startswith("must ")  # noqa: PT017
        assert len(str(error).splitlines()) == 1  # noqa: PT017


@settings(deadline=None)
@given(st.integers(-(10**50), 10**50), st.floats(allow_nan=False, allow_infinity=False), st.integers(0, 10**6))
def test_parse_reads_what_python_prints(whole: int, real: float, thousands: int) -> None:
    assert parse_value(int, str(whole)) == whole
    assert parse_value(float, repr(real)) == real
    assert parse_value(Count, f"{thousands}k") == thousands * 1000


@pytest.mark.parametrize(
    ("kind", "word"),
    [(str, "text"), (Count, "count"), (float, "number"), (tuple[int, ...], "int,...")],
)
def test_the_help_has_a_word_for_each_type(kind: Any, word: str) -> None:
    assert metavar(kind) == word


def test_the_required_type() -> None:
    assert required_type(int | None) is int
    assert required_type(Text | None) == Text
    assert required_type(float) is float


def test_a_wrong_choice_names_the_closest() -> None:
    check_choice("fan", ("fan", "grill"))
    with pytest.raises(ValueError, match=r"^must be one of fan, grill, got 'Gril'; did you mean grill\?$"):
        check_choice("Gril", ("fan", "grill"), "Gril")
