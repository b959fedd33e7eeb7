"""Texts that already hold the special tokens that stand around a text, such as `<s>` and `</s>`: none is doubled."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from capaft.data.spool import stored_columns
from capaft.support.errors import UsageError
from capaft.tasks.base.columns import Columns, text_values
from capaft.tasks.language.long_texts import beginning, text_batches
from capaft.tasks.language.notes import CountedNote
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

    def strip_texts(self, texts: Iterable[str], changed: list[int]) -> Iterator[str]:
        """The texts without them; the number of those that had some is added to `changed`."""
        for text in texts:
            bare = self.strip(text)
            changed[0] += bare != text
            yield bare

    def note(self, changed: int, total: int, what: str) -> list[str]:
        """A line that says how many texts had some, if any had."""
        tokens = ", ".join(dict.fromkeys([*self.before, *self.after, *self.ends]))
        text = f"{what} already hold special tokens ({tokens}), which are not doubled"
        return [CountedNote(changed, total, text)] if changed else []


def frame(tokenizer: Any, before: Collection[int], after: Collection[int] = (), ends: Collection[int] = ()) -> Frame:
    """The frame of tokens, as far as their text in a text means them."""
    return Frame(*(tuple(_written(tokenizer, ids)) for ids in (before, after, ends)))


def tokenise_rows(
    tokenizer: Any, rows: Dataset, columns: Columns, around: Frame | None = None, tokens: int | None = None
) -> tuple[Sequence[list[int]], list[str]]:
    """Token ids of each row whose text is not empty, without the special tokens around it.

    Args:
        tokenizer: the tokenizer.
        rows: the split.
        columns: its columns.
        around: special tokens that are taken off the texts.
        tokens: number of tokens of a text that are needed; all by default. Of a longer text there is at least one more.

    Returns:
        The ids, on the disk if there are many, and a line that says how many texts had such tokens, if any had.

    Raises:
        UsageError: a value is missing, every text is empty, or one is too long.
    """
    around = around or Frame()
    texts = text_values(rows, columns)[0]
    changed = [0]
    bare = filter(None, around.strip_texts(texts, changed))
    parts = bare if tokens is None else (beginning(tokenizer, text, tokens) for text in bare)
    batches = text_batches((text, None) for text in parts)
    stored = stored_columns({"ids": tokenise_plain(tokenizer, [text for text, _ in batch])} for batch in batches)
    if not stored:
        raise UsageError(f"every text in column {columns.text!r} is empty; choose another with --text-column")
    return stored["ids"], around.note(changed[0], len(texts), "texts")


def _without_end(text: str, token: str) -> str:
    bare = text.rstrip()
    return bare[: -len(token)] if bare.endswith(token) else text


def _written(tokenizer: Any, ids: Collection[int]) -> list[str]:
    texts = [str(text) for text in tokenizer.convert_ids_to_tokens(list(ids))]
    return [text for text, token in zip(texts, ids, strict=True) if tokenise_plain(tokenizer, [text])[0] == [token]]
