"""Markdown for model cards, in which foreign texts stay what they are: no markup, no new lines."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from capaft.support.errors import printable


def inline(text: str) -> str:
    """A text within a line or a cell of a table, with everything escaped that Markdown or HTML would read as markup."""
    return re.sub(r"([\\`*_{}\[\]<>()#|~!$&@:])", r"\\\1", printable(text))


def fenced(text: str, language: str = "") -> str:
    """A block of code, whose fence is longer than any in it."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def front_matter(entries: Mapping[str, Any]) -> str:
    """The block of metadata at the start of a card, without entries that are empty."""
    import yaml

    kept = {name: value for name, value in entries.items() if value}
    return f"---\n{yaml.safe_dump(kept, sort_keys=False, width=10**6)}---\n"
