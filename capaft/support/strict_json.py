"""Standard JSON: a number that is not finite, such as the correlation of a constant, is null.

Python would write NaN and Infinity, which other readers refuse.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

from capaft.support.printable import printable


def document(value: Any, indent: int | None = None) -> str:
    """A value as one document, indented by this many spaces a level, or on one line; in ASCII that can be printed."""
    # The one control character that JSON leaves as it is. It can only be in a text.
    return json.dumps(_finite(value), indent=indent).replace("\x7f", "\\u007f")


def lines(records: Iterable[Any]) -> str:
    """Records, one a line, in Unicode."""
    return "".join(json.dumps(_finite(record), ensure_ascii=False) + "\n" for record in records)


def shown_lines(records: Iterable[Any], encoding: str = "utf-8") -> str:
    """Records, one a line, for a screen: characters that it cannot show, or obeys, are escaped as JSON has them."""
    text = lines(records)
    if text.isascii() and "\x7f" not in text:
        return text
    return "".join(_escaped(character, encoding) for character in text)


def _escaped(character: str, encoding: str) -> str:
    if character == "\n" or (printable(character) == character and _has(encoding, character)):
        return character
    return json.dumps(character)[1:-1] if character != "\x7f" else "\\u007f"


def _has(encoding: str, character: str) -> bool:
    try:
        character.encode(encoding)
    except (UnicodeError, LookupError):
        return False
    return True


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
