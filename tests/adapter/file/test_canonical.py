"""The JSON of a file means the same to every reader, and the same value has the same bytes."""

from __future__ import annotations

import json
from typing import Any

import naive_reader
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capaft.adapter.file.canonical import canonical_json, parse_json, plain

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    # Not negative zero, which JSON can write but not all readers tell from 0.
    .map(lambda number: number + 0.0)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(VALUES)
def test_what_is_written_is_read_by_both(value: Any) -> None:
    text = canonical_json(plain(value, "it"))
    assert text.isascii()
    assert parse_json(text) == naive_reader.parse(text) == value
    assert canonical_json(parse_json(text)) == text


# Every escape and number that the page spells out.
WRITTEN: dict[str, Any] = {
    r'"\" \\ / \b \f \n \r \t"': '" \\ / \b \f \n \r \t',
    r'"\u0000\u0001\u000b\u001f ~\u007f\u0080\u00e9\u20ac\ud83d\ude00"': "\0\1\v\x1f ~\x7f\x80é€😀",
    '{"A":1,"a":2,"\\u00e9":3,"\\uffff":4,"\\ud83d\\ude00":5}': {"😀": 5, "\uffff": 4, "é": 3, "a": 2, "A": 1},
    "16.0": 16.0,
    "0.29": 0.29,
    "0.0001": 1e-4,
    "1e-05": 1e-5,
    "1.5e-07": 1.5e-7,
    "1000000000000000.0": 1e15,
    "1e+16": 1e16,
    "1.2345678901234568e+16": 12345678901234567.0,
    "5e-324": 5e-324,
    "1.7976931348623157e+308": 1.7976931348623157e308,
    "0.0": -0.0,
    "18446744073709551615": 2**64 - 1,
    "-9223372036854775808": -(2**63),
    "[true,false,null]": (True, False, None),
}


@pytest.mark.parametrize("text", WRITTEN)
def test_golden_texts(text: str) -> None:
    assert canonical_json(plain(WRITTEN[text], "it")) == text


REFUSED = {
    "a key twice": '{"a":1,"a":1}',
    "a key twice inside": '[{"b":{"a":1,"\\u0061":2}}]',
    "half a pair": '"\\ud800"',
    "the other half": '"a\\uDFFF"',
    "the halves the wrong way round": '"\\udc00\\ud800"',
    "half a pair in a key": '{"\\ud800":1}',
    "NaN": "NaN",
    "infinity": "[-Infinity]",
    "a number too large": "1e999",
    "a number too small": "-1e-999",
    "negative zero": "-0.0",
    "negative zero, whole": "-0",
    "65 bits": "18446744073709551616",
    "64 bits and a sign": "-9223372036854775809",
    "many digits": "9" * 5000,
    "nothing": "",
    "two values": "1 2",
    "a mark": "\ufeff1",
    "deep": "[" * 100_000,
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("parse", [parse_json, naive_reader.parse])
def test_what_readers_would_not_agree_on_is_refused(kind: str, parse: Any) -> None:
    with pytest.raises((ValueError, RecursionError)):
        parse(REFUSED[kind])


OTHERWISE = ['{"b":1,"a":2}', '{ "a":1}', '"\\/"', '"\\u0041"', '"\\u00E9"', '"é"', '"\x7f"', '"\\u000a"', "1E5", "1e5"]


@pytest.mark.parametrize("text", [*OTHERWISE, "1.50", "1e05", "0.1e1", "100000.00", "1e+15", "0.00001"])
def test_another_text_of_a_value_is_not_canonical(text: str) -> None:
    assert canonical_json(parse_json(text)) != text


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": [1, "\ud800"]}, r"it\.a\[1\] holds a half of a surrogate pair"),
        ({"\udfff": 1}, "a key of it holds a half"),
        ({1: 1}, "the key 1, which is not text"),
        ([float("nan")], r"it\[0\] is not finite"),
        (2**64, "more than 64 bits"),
        (-(2**63) - 1, "more than 64 bits"),
        ({"a": {1}}, r"it\.a is a set"),
        (b"a", "is a bytes"),
        (json.loads("[" * 17 + "]" * 17), "more than 16 levels"),
    ],
)
def test_what_cannot_be_written_is_named(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plain(value, "it")
