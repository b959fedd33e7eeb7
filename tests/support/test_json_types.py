"""Values of a JSON document, and the types expected of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from capaft.support.json_types import fits, fitting

FITTING: list[tuple[Any, Any]] = [
    (1, int),
    (1, float),
    (1.5, float),
    (None, float | None),
    ("a", str),
    ([], list[int]),
    ([1], list[int]),
    ([1, 0.5], tuple[float, float]),
    ({"a": None}, dict[str, float | None]),
    (True, bool),
    ({"a": [1]}, dict[str, Any]),
]
OTHERS: list[tuple[Any, Any]] = [
    (1.0, int),
    (True, int),
    (True, float),
    (None, float),
    ("a", list[str]),
    ([1, "a"], list[int]),
    ([1], tuple[float, float]),
    ([1, "a"], tuple[float, float]),
    ([], dict[str, int]),
    ({"a": "b"}, dict[str, int]),
    ("1", int | None),
]


def test_what_fits() -> None:
    assert [pair for pair in FITTING if not fits(*pair)] == []
    assert [pair for pair in OTHERS if fits(*pair)] == []


@dataclass
class Pair:
    first: int
    second: str


def test_records() -> None:
    assert fitting({"first": 1, "more": None}, Pair) == {"first": 1, "more": None}
    for record in ({"first": "1"}, {"second": None}, [], None):
        with pytest.raises(TypeError):
            fitting(record, Pair)
