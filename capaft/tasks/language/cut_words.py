"""Words that are tokenised one by one, some rows at a time, and cut to a limit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Any, NoReturn

from capaft.data.lazy import batches
from capaft.tasks.language.long_texts import PIECE, beginning, ending
from capaft.tasks.language.token_loss import IGNORED


class CutWords:
    """Rows of words, tokenised word by word and cut to a limit.

    Attributes:
        truncated: number of rows so far that lost tokens.
    """

    def __init__(self, tokenizer: Any, limit: int) -> None:
        self._tokenizer = tokenizer
        self._limit = limit
        self._space = " " if _needs_space(tokenizer) else ""
        self.truncated = 0

    def batches(
        self, rows: Iterable[tuple[list[str], list[int]]], refuse: Callable[[int], NoReturn]
    ) -> Iterator[dict[str, list[Any]]]:
        """The features of some rows at a time.

        Args:
            rows: the words of each row and their classes.
            refuse: called with the position of a row without a token.

        Raises:
            UsageError: a word is too long to be tokenised.
        """
        done = 0
        for batch in batches(rows, lambda row: sum(map(len, row[0]))):
            parts = [self._needed([self._space + word for word in words]) for words, _ in batch]
            encoded = self._tokenizer(
                [words for _, words in parts],
                is_split_into_words=True,
                truncation=True,
                max_length=self._limit,
                return_attention_mask=False,
            )
            columns: dict[str, list[Any]] = {**encoded, "labels": [], "tagged": [], "classes": []}
            for at, ((skipped, _), (_, classes)) in enumerate(zip(parts, batch, strict=True)):
                ids = [None if word is None else word + skipped for word in encoded.word_ids(at)]
                firsts = [word if word != before else None for before, word in pairwise([None, *ids])]
                if not any(word is not None for word in firsts):
                    refuse(done + at)
                columns["labels"].append([IGNORED if word is None else classes[word] for word in firsts])
                columns["tagged"].append([word for word in firsts if word is not None and classes[word] != IGNORED])
                columns["classes"].append(classes)
            self.truncated += sum(bool(encoding.overflowing) for encoding in encoded.encodings)
            done += len(batch)
            yield columns

    def _needed(self, words: list[str]) -> tuple[int, list[str]]:
        """The words that are read of a row, and the number of those before them: of a long row only as many as needed.

        No word depends on another. As many tokens are left as show that some were cut.
        """
        if sum(map(len, words)) <= PIECE:
            return 0, words
        is_left = getattr(self._tokenizer, "truncation_side", "right") == "left"
        part = ending if is_left else beginning
        kept: list[str] = []
        tokens = 0
        for some in batches(reversed(words) if is_left else words, len, PIECE):
            shorter = [part(self._tokenizer, word, self._limit) for word in some]
            tokens += len(
                self._tokenizer(shorter, is_split_into_words=True, add_special_tokens=False, verbose=False)["input_ids"]
            )
            kept += shorter
            if tokens > self._limit:
                break
        return (len(words) - len(kept), kept[::-1]) if is_left else (0, kept)


def _needs_space(tokenizer: Any) -> bool:
    """True if a word in a list reads as in running text only with a space before it.

    Byte-level BPE takes a word without one for the end of another word. The space does what `add_prefix_space` does in
    RoBERTa's tokenizer, whatever the tokenizer is made of.
    """
    running = tokenizer("a a", add_special_tokens=False)["input_ids"]
    return running != tokenizer(["a", "a"], is_split_into_words=True, add_special_tokens=False)["input_ids"]
