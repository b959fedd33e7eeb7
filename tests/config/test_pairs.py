"""Pairs that a user types after a flag."""

from __future__ import annotations

import pytest

from capaft.config.pairs import parse_pairs
from capaft.support.errors import UsageError


def test_pairs() -> None:
    assert parse_pairs([], "--rename OLD=NEW") == {}
    assert parse_pairs(("a=b", "c= d "), "--rename OLD=NEW") == {"a": "b", "c": " d "}
    assert parse_pairs(["a=b", "a=c"], "--rename OLD=NEW") == {"a": "c"}


@pytest.mark.parametrize("entry", ["a", "=b", "a=", "=", ""])
def test_what_is_not_a_pair_is_one_line(entry: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_pairs(["x=y", entry], "--rename OLD=NEW")
    assert str(caught.value) == f"--rename {entry} must be old=new"


def test_a_value_may_be_empty_where_it_is_a_text() -> None:
    assert parse_pairs(["separator=", "a=b"], "--set NAME=VALUE", may_be_empty=True) == {"separator": "", "a": "b"}
    with pytest.raises(UsageError, match=r"^--set separator must be name=value$"):
        parse_pairs(["separator"], "--set NAME=VALUE", may_be_empty=True)
