"""Foreign text, made safe to show: nothing in it moves the cursor, starts a line or turns letters around.

Names, labels, file names, data and the messages of libraries may come from a stranger. Text of any language stays as it
is, with the joiners that Persian, Hindi and emoji need.
"""

from __future__ import annotations

import unicodedata

# Categories: controls, formats (bidirectional ones, tags), surrogates, unassigned, and separators of lines.
_ESCAPED = frozenset(["Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp"])
# Formats that letters need: the two joiners, and the Arabic and Kaithi signs that enclose numbers.
_KEPT = frozenset(map(chr, (0x200C, 0x200D, *range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD)))


def printable(text: str) -> str:
    r"""A text on one line, with control characters, direction marks and lone surrogates as escapes such as `\x1b`."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escaped(character) if _is_unsafe(character) else character for character in text)


def _is_unsafe(character: str) -> bool:
    return unicodedata.category(character) in _ESCAPED and character not in _KEPT


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
