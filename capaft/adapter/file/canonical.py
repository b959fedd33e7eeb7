"""JSON with one text for each value, which readers in every language take alike.

Python's `json` is too generous for that: it reads the last of two equal keys, NaN, numbers of any size, and halves of
surrogate pairs, which are no text; and it would write most of them.
"""

from __future__ import annotations

import gc
import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

MAX_DEPTH = 16
INTEGERS = range(-(2**63), 2**64)
# An escaped half of a surrogate pair, with or without its other half.
_HALF = re.compile(r"\\u[dD][89a-fA-F]")


def canonical_json(value: Any) -> str:
    """JSON with sorted keys, no spaces and ASCII only: the same bytes for the same value.

    Raises:
        ValueError: a number is not finite.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def parse_json(text: str) -> Any:
    """The value of a text that means the same to every reader.

    Args:
        text: as it was decoded from UTF-8, so that no half of a surrogate pair stands in it as it is.

    Raises:
        ValueError: it is no JSON, has a key twice, a half of a surrogate pair, or a number that is not finite, is a
            negative zero or has more than 64 bits.
        RecursionError: it is nested too deep.
    """
    with _without_collection():
        value = json.loads(
            text, object_pairs_hook=_distinct, parse_int=_integer, parse_float=_number, parse_constant=_refuse
        )
    if _HALF.search(text) and not is_text(json.dumps(value, ensure_ascii=False)):
        raise ValueError("a text holds a half of a surrogate pair")
    return value


def plain(value: Any, where: str, depth: int = MAX_DEPTH) -> Any:
    """A value as JSON has it: tuples are lists, and a negative zero is 0.

    Args:
        value: what somebody wants to store.
        where: its name, for a message.
        depth: levels that it may be nested.

    Raises:
        ValueError: JSON cannot hold it, or readers would not agree on it.
    """
    match value:
        case None | bool():
            return value
        case int() if value in INTEGERS:
            return int(value)
        case float() if math.isfinite(value):
            return float(value) + 0.0
        case str():
            if not is_text(value):
                raise ValueError(f"{where} holds a half of a surrogate pair, which is no text")
            return str(value)
        case dict() | list() | tuple() if depth == 0:
            raise ValueError(f"{where} is nested more than {MAX_DEPTH} levels deep")
        case dict():
            for key in value:
                if type(key) is not str:
                    raise ValueError(f"{where} has the key {key!r}, which is not text")
                plain(key, f"a key of {where}")
            return {key: plain(item, f"{where}.{key}", depth - 1) for key, item in value.items()}
        case list() | tuple():
            return [plain(item, f"{where}[{index}]", depth - 1) for index, item in enumerate(value)]
        case int():
            raise ValueError(f"{where} has more than 64 bits")
        case float():
            raise ValueError(f"{where} is not finite")
    raise ValueError(f"{where} is a {type(value).__name__}, which JSON does not have")


def is_text(text: str) -> bool:
    """True if a text has no half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@contextmanager
def _without_collection() -> Iterator[None]:
    """Millions of new lists, none of them garbage, would be searched for cycles again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return value


def _integer(text: str) -> int:
    if len(text) > 20 or (value := int(text)) not in INTEGERS:
        raise ValueError("a number has more than 64 bits")
    if text == "-0":
        raise ValueError("a number is a negative zero")
    return value


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value) or (value == 0 and text.startswith("-")):
        raise ValueError("a number is not finite, or is a negative zero")
    return value


def _refuse(text: str) -> Any:
    raise ValueError(f"{text} is no number")
