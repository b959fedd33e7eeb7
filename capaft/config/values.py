"""Values parsed from the text that a user wrote, by the type of the setting.

All sources pass text to one `parse_value`, so that `5e-3` means the same in each.
"""

from __future__ import annotations

import math
import re
import typing
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, get_args, get_origin

from capaft.support.errors import did_you_mean

Count = Annotated[int, "count"]
"""A whole number that may be written 1_000, 50k or 1.5M."""

Text = Annotated[str, "text"]
"""A text that may be blank or empty, such as a separator."""

_TRUE = ("true", "yes", "on", "1")
# The patterns are narrower than int() and float(), which take 1_0, digits of other scripts, nan and inf.
_DECIMAL = r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"


def _parse_count(text: str) -> int | None:
    number = Decimal(text.rstrip("kM")) * {"k": 10**3, "M": 10**6}.get(text[-1], 1)
    return int(number) if number == int(number) else None


# By type: its metavar, words that complete "must be ...", the pattern of its text, and the parser of that text.
_KINDS: dict[Any, tuple[str, str, str, Callable[[str], Any]]] = {
    str: ("text", "text that is not empty", r"(?s).+", str),
    Text: ("text", "text", r"(?s).*", str),
    Path: ("path", "a path", r"(?s).+", Path),
    int: ("int", "a whole number", r"[+-]?[0-9]{1,100}", int),
    Count: ("count", "a whole number such as 50k or 1.5M", r"[0-9][0-9_]{,12}(\.[0-9]{1,12})?[kM]?", _parse_count),
    float: ("number", "a finite number such as 0.1 or 5e-3", _DECIMAL, float),
    bool: ("bool", "true or false", r"(?i)true|yes|on|1|false|no|off|0", lambda text: text.lower() in _TRUE),
}


def parse_value(kind: Any, text: str | Sequence[str]) -> Any:
    """Parse the text that a user wrote in any source.

    Args:
        kind: `str`, `Text`, `Path`, `int`, `Count`, `float`, `bool`, a `Literal` of strings, a tuple of any number
            of these, or any of them `| None` (written `none`, `null`, `~` or, except for `Text`, left blank).
        text: the text; for tuples, comma separated or a sequence of texts.

    Raises:
        ValueError: the text does not fit; the message continues the name of the setting.
    """
    required = required_type(kind)
    if required != kind and isinstance(text, str) and _is_none(required, text):
        return None
    if get_origin(required) is tuple:
        parts = [part.strip() for part in text.split(",")] if isinstance(text, str) else text
        return tuple(parse_value(get_args(required)[0], part) for part in parts)
    if not isinstance(text, str):
        raise ValueError("must be a single value, got a list")
    word = _stripped(required, text)
    if get_origin(required) is Literal:
        check_choice(word, get_args(required), text)
        return word
    if required not in _KINDS:
        raise ValueError("has a type that cannot be written here")
    _, words, pattern, parse = _KINDS[required]
    value = parse(word) if re.fullmatch(pattern, word) else None
    if value in (None, math.inf, -math.inf):
        raise ValueError(f"must be {words}, got {text!r}")
    return value


def check_choice(word: str, choices: Sequence[str], text: str | None = None) -> None:
    """Make sure that a word is one of several.

    Args:
        word: the word.
        choices: the words that are allowed.
        text: the word as the user wrote it.

    Raises:
        ValueError: it is not; the message continues the name of the setting.
    """
    if word not in choices:
        hint = did_you_mean(word.lower(), choices)
        raise ValueError(f"must be one of {', '.join(choices)}, got {word if text is None else text!r}{hint}")


def required_type(kind: Any) -> Any:
    """The type without its `| None`."""
    if get_origin(kind) in (typing.Union, UnionType):
        (kind,) = (arg for arg in get_args(kind) if arg is not NoneType)
    return kind


def metavar(kind: Any) -> str:
    """The placeholder for a value of a type in the help."""
    return f"{metavar(get_args(kind)[0])},..." if get_origin(kind) is tuple else _KINDS[kind][0]


def _stripped(kind: Any, text: str) -> str:
    """A text without the blanks around it, which are part of texts and paths only."""
    return text if kind in (str, Path, Text) else text.strip()


def _is_none(kind: Any, text: str) -> bool:
    """True if a text means None where that is allowed."""
    is_blank = not text.strip() and kind != Text
    return is_blank or _stripped(kind, text).lower() in ("none", "null", "~")
