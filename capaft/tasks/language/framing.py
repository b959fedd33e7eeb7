"""Texts that already hold the special tokens that stand around a text, such as `<s>` and `</s>`: none is doubled."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from capaft.support.errors import UsageError
from capaft.tasks.base.columns import Columns, row_texts
from capaft.tasks.language.plain_text import tokenise_plain

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Frame:
    """The special tokens around a text, as a text may already hold them.

    Attributes:
        before: those that come before it, in order.
        after: those that come after it, in order.
        ends: those any of which may end it.
    """

    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()

    def strip(self, text: str) -> str:
        """The text without them, and without the white space around them."""
        for token in self.before:
            bare = text.lstrip()
            text = bare[len(token) :] if bare.startswith(token) else text
        for token in reversed(self.after):
            text = _without_end(text, token)
        shorter = (bare for token in self.ends if (bare := _without_end(text, token)) != text)
        return next(shorter, text)

    def strip_all(self, texts: Sequence[str]) -> tuple[list[str], list[str]]:
        """The texts without them, and a line that says how many had some, if any had."""
        bare = list(map(self.strip, texts))
        changed = sum(one != other for one, other in zip(texts, bare, strict=True))
        return bare, self.note(changed, len(texts), "texts")

    def note(self, changed: int, total: int, what: str) -> list[str]:
        """A line that says how many texts had some, if any had."""
        tokens = ", ".join(dict.fromkeys([*self.before, *self.after, *self.ends]))
        return [f"{changed} of {total} {what} already hold special tokens ({tokens}), which are not doubled"][:changed]


def frame(tokenizer: Any, before: Collection[int], after: Collection[int] = (), ends: Collection[int] = ()) -> Frame:
    """The frame of tokens, as far as their text in a text means them."""
    return Frame(*(tuple(_written(tokenizer, ids)) for ids in (before, after, ends)))


def tokenise_rows(
    tokenizer: Any, rows: Dataset, columns: Columns, around: Frame | None = None
) -> tuple[list[list[int]], list[str]]:
    """Token ids of each row whose text is not empty, without the special tokens around it.

    Returns:
        The ids, and a line that says how many texts had such tokens, if any had.

    Raises:
        UsageError: a value is missing, or every text is empty.
    """
    bare, note = (around or Frame()).strip_all(row_texts(rows, columns)[0])
    texts = [text for text in bare if text]
    if not texts:
        raise UsageError(f"every text in column {columns.text!r} is empty; choose another with --text-column")
    return tokenise_plain(tokenizer, texts), note


def _without_end(text: str, token: str) -> str:
    bare = text.rstrip()
    return bare[: -len(token)] if bare.endswith(token) else text


def _written(tokenizer: Any, ids: Collection[int]) -> list[str]:
    texts = [str(text) for text in tokenizer.convert_ids_to_tokens(list(ids))]
    return [text for text, token in zip(texts, ids, strict=True) if tokenise_plain(tokenizer, [text])[0] == [token]]
