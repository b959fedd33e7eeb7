"""Markdown for model cards, in which foreign texts stay what they are: no markup, no new lines."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping
from typing import Any

from capaft.support.printable import printable

# Characters that have a meaning in a line of Markdown; underscores have none within a word.
_MARKUP = re.compile(r"([\\`*\[\]|~$@#!]|(?<!\w)_|_(?!\w)|:(?=//))")


def inline(text: str) -> str:
    """A text that Markdown, in a paragraph or a table, shows as it is: neither HTML nor links, emphasis or new rows."""
    return html.escape(_MARKUP.sub(r"\\\1", printable(text)), quote=False)


def fenced(text: str, language: str = "") -> str:
    """Lines as a block of code, whose fence is longer than any run of backticks in them."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return "\n".join([f"{fence}{language}", *map(printable, text.split("\n")), fence])


def front_matter(entries: Mapping[str, str | Iterable[str] | None]) -> str:
    """The block of metadata at the start of a card, without entries that are empty."""
    import yaml

    plain: dict[str, Any] = {
        name: printable(value) if isinstance(value, str) else list(map(printable, value))
        for name, value in entries.items()
        if value
    }
    text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=10**6)
    return f"---\n{text}---\n"
