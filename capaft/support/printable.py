"""Foreign text, made safe to show: nothing in it moves the cursor, starts a line or turns letters around.

Names, labels, file names, data and the messages of libraries may come from a stranger. Text of any language stays as it
is, with the joiners that Persian, Hindi and emoji need.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

# Categories: controls, formats (bidirectional ones, tags), surrogates, unassigned, and separators of lines.
_ESCAPED = frozenset(["Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp"])
# Formats that letters need: the two joiners, and the Arabic and Kaithi signs that enclose numbers.
_KEPT = frozenset(map(chr, (0x200C, 0x200D, *range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD)))
# Characters with a meaning in Markdown, wherever they stand in a line.
_MARKDOWN = re.compile(r"([\\`*\[\]|~]|(?<!\w)_|_(?!\w))")


def printable(text: str) -> str:
    r"""A text on one line, with control characters, direction marks and lone surrogates as escapes such as `\x1b`."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escaped(character) if _is_unsafe(character) else character for character in text)


def _is_unsafe(character: str) -> bool:
    return unicodedata.category(character) in _ESCAPED and character not in _KEPT


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def markdown(text: str) -> str:
    """A text that Markdown, in a paragraph or a table, shows as it is: neither HTML nor links, emphasis or new rows."""
    return html.escape(_MARKDOWN.sub(r"\\\1", printable(text)), quote=False)


def fenced(text: str) -> str:
    """Lines as a block of code in Markdown, which no run of backticks in them ends."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return "\n".join([fence, *map(printable, text.split("\n")), fence])


def front_matter(values: Mapping[str, str | Iterable[str]]) -> str:
    """The YAML block at the head of a Markdown file, `---` around it."""
    import yaml

    plain: dict[str, Any] = {
        key: printable(value) if isinstance(value, str) else list(map(printable, value))
        for key, value in values.items()
    }
    text = yaml.safe_dump(plain, sort_keys=False, default_flow_style=None, allow_unicode=True, width=10**6)
    return f"---\n{text}---\n"
