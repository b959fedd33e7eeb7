"""Numbers among labels that are texts, since one "NA" or one decimal comma makes a column of numbers one of texts."""

from __future__ import annotations

import re

_PLAIN = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_WHOLE = re.compile(r"[+-]?[0-9]+(\.0*)?")
# Without leading zeros, which codes have.
_CLASS = re.compile(r"([+-]?)(0|[1-9][0-9]*)(\.0*)?")
_NOTATION = re.compile(
    r"[+\-\u2212\u2013]?\s*[$\u00a3\u20ac]?\s*"
    r"(?:[0-9]+(?:[.,][0-9]*)?|[.,][0-9]+|[0-9]{1,3}(?:[.,'\u2019\s][0-9]{3})+(?:[.,][0-9]+)?)"
    r"(?:[eE][+-]?[0-9]+)?\s*[%\u2030$\u00a3\u20ac]?"
)


def plain_number(text: str) -> float | None:
    """The number that a text writes as Python does, blanks aside; None for any other text."""
    stripped = text.strip()
    return float(stripped) if _PLAIN.fullmatch(stripped) else None


def is_number(text: str) -> bool:
    """True if a text is a number in some notation: with a comma, thousands apart, a percent sign, a currency."""
    return bool(_NOTATION.fullmatch(text.strip()) or _PLAIN.fullmatch(text.strip()))


def is_whole(text: str) -> bool:
    """True if a text is a whole number in plain digits, as classes may be numbered."""
    return bool(_WHOLE.fullmatch(text.strip()))


def whole_number(text: str) -> str | None:
    """The shortest way to write a whole number: "1" for " +1.0 "; None for other texts and for codes such as "007"."""
    match = _CLASS.fullmatch(text.strip())
    if match is None:
        return None
    return match[2] if match[1] != "-" or match[2] == "0" else f"-{match[2]}"
