from __future__ import annotations

import json
import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from capaft.support import strict_json

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def refused(constant: str) -> Any:
    raise AssertionError(f"{constant} is not in the standard")


def same(written: Any, read: Any) -> bool:
    if isinstance(written, float) and not math.isfinite(written):
        return read is None
    if isinstance(written, list):
        return len(written) == len(read) and all(map(same, written, read))
    if isinstance(written, dict):
        return written.keys() == read.keys() and all(same(written[key], read[key]) for key in written)
    return bool(written == read)


@given(plain)
def test_what_is_not_finite_is_null_and_all_else_is_as_it_was(value: Any) -> None:
    for written in (strict_json.document(value), strict_json.document(value, indent=2)):
        assert same(value, json.loads(written, parse_constant=refused))


@given(st.lists(plain))
def test_a_record_a_line(records: list[Any]) -> None:
    written = strict_json.lines(records)
    assert written.count("\n") == len(records)
    read = [json.loads(line, parse_constant=refused) for line in written.split("\n")[:-1]]
    assert same(records, read)


def test_texts_stay_readable() -> None:
    assert strict_json.lines([{"text": "é日", "scores": (1.0, math.nan)}]) == '{"text": "é日", "scores": [1.0, null]}\n'


@given(st.lists(st.text(), max_size=3))
def test_a_line_for_a_screen_is_the_same_record(records: list[str]) -> None:
    shown = strict_json.shown_lines(records, "ascii")
    assert shown.isascii()
    assert [character for character in shown if not character.isprintable()] == ["\n"] * len(records)
    assert same(records, [json.loads(line, parse_constant=refused) for line in shown.split("\n")[:-1]])


def test_a_screen_is_shown_letters_and_no_controls() -> None:
    assert strict_json.shown_lines(["é\x1b\x7f\u202e\U000e0001\ud800"]) == (
        '"é\\u001b\\u007f\\u202e\\udb40\\udc01\\ud800"\n'
    )
