"""Tokenised texts, cut to a limit and batch by batch, so that no more of them is in memory than one batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from capaft.tasks.language.long_texts import shortened, text_batches

Inputs = dict[str, list[Any]]


class CutRows:
    """Texts or pairs of texts, tokenised with special tokens and cut to a limit.

    Args:
        tokenizer: the tokenizer.
        limit: largest number of tokens of a row.

    Attributes:
        is_cut: True for each row so far that lost tokens.
    """

    def __init__(self, tokenizer: Any, limit: int) -> None:
        self._tokenizer = tokenizer
        self._limit = limit
        self.is_cut = bytearray()

    @property
    def truncated(self) -> int:
        """Number of rows that lost tokens."""
        return sum(self.is_cut)

    def batches(self, texts: Iterable[tuple[str, str | None]], role: str = "text") -> Iterator[Inputs]:
        """The model's inputs by name, a batch of rows at a time.

        Args:
            texts: the text of each row, and its second text; all rows have one, or none has.
            role: `text`, or `text_target` for what a decoder writes.

        Raises:
            UsageError: a text is too long to be tokenised.
        """
        for batch in text_batches(texts):
            parts = [shortened(self._tokenizer, self._limit, *pair) for pair in batch]
            arguments: dict[str, Any] = {role: [first for first, _ in parts]}
            if parts[0][1] is not None:
                arguments["text_pair"] = [second for _, second in parts]
            encoded = self._tokenizer(**arguments, truncation=True, max_length=self._limit, return_attention_mask=False)
            if encoded.encodings is not None:
                self.is_cut += bytes(bool(encoding.overflowing) for encoding in encoded.encodings)
            else:
                self.is_cut += self._are_longer(arguments, encoded["input_ids"])
            yield dict(encoded)

    def _are_longer(self, arguments: dict[str, Any], ids: Sequence[list[int]]) -> bytes:
        """1 for each row that a tokenizer in Python, which does not tell, has cut."""
        places = [at for at, tokens in enumerate(ids) if len(tokens) >= self._limit]
        longer = bytearray(len(ids))
        if places:
            again = {name: [values[at] for at in places] for name, values in arguments.items()}
            whole = self._tokenizer(**again, verbose=False)["input_ids"]
            for at, tokens in zip(places, whole, strict=True):
                longer[at] = len(tokens) > self._limit
        return bytes(longer)
