"""A question with its context, cut into windows that a model can take.

Every window holds the question and the special tokens around a pair, as if its part of the context were the whole;
neighbours overlap by the stride, so that no answer shorter than the stride is cut in every window. The question comes
first whichever side is padded: a causal model then reads the context knowing what to look for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from capaft.support.errors import UsageError

# Rows tokenised at a time: enough for all cores, and few enough for memory.
_ROWS = 1000


@dataclass(frozen=True, slots=True)
class Window:
    """A part of a row.

    Attributes:
        row: index of the row.
        input_ids: `(tokens,)`.
        token_type_ids: `(tokens,)`.
        null: index of the token that means "not here": [CLS], or the first token if there is no [CLS].
        first: index of its first token of the context.
        begin: index of that token among the context's.
        end: one past the index of its last token among the context's.
        characters: span of each token of the whole context, `(context tokens, 2)`: the first character and one past
            the last; some tokens of some tokenizers have empty spans.
    """

    row: int
    input_ids: NDArray[np.int32]
    token_type_ids: NDArray[np.int8]
    null: int
    first: int
    begin: int
    end: int
    characters: NDArray[np.int32]

    def tokens(self, start: int, end: int) -> tuple[int, int] | None:
        """The first and the last token of the characters from `start` to before `end`, or None if some are outside."""
        starts, ends = self.characters.T
        inside = np.flatnonzero((starts < ends) & (ends > start) & (starts < end))
        if not len(inside) or inside[0] < self.begin or inside[-1] >= self.end:
            return None
        shift = self.first - self.begin
        return int(inside[0]) + shift, int(inside[-1]) + shift

    def text(self, context: str, first: int, last: int) -> str:
        """Text of the tokens from `first` to `last`, without white space around it."""
        shift = self.begin - self.first
        return context[self.characters[first + shift, 0] : self.characters[last + shift, 1]].strip()

    def answerable(self) -> NDArray[np.bool_]:
        """Mask of the tokens that stand for characters of the context, `(tokens,)`."""
        mask = np.zeros(len(self.input_ids), dtype=np.bool_)
        starts, ends = self.characters[self.begin : self.end].T
        mask[self.first : self.first + self.end - self.begin] = starts < ends
        return mask


def cut_windows(
    tokenizer: Any,
    questions: Sequence[str],
    contexts: Sequence[str],
    max_length: int,
    stride: int,
    numbers: Sequence[int] = (),
) -> list[Window]:
    """The windows of all rows, those of a row in order.

    Args:
        tokenizer: a fast one, which knows the place of each token in the text.
        questions: of each row.
        contexts: of each row.
        max_length: largest number of tokens in a window.
        stride: tokens of the context that neighbours share.
        numbers: of the rows, for messages; by default they are counted from 1.

    Raises:
        UsageError: the tokenizer is slow; a question or context is empty, or so long that windows cannot advance.
    """
    if not tokenizer.is_fast:
        raise UsageError("question answering needs a model with a fast tokenizer, which knows the places of its tokens")
    windows: list[Window] = []
    for start in range(0, len(questions), _ROWS):
        stripped = [question.strip() for question in questions[start : start + _ROWS]]
        encoded = tokenizer(stripped, list(contexts[start : start + _ROWS]), verbose=False).encodings
        for row, encoding in enumerate(encoded, start):
            name = f"row {numbers[row] if numbers else row + 1}"
            windows += _windows(tokenizer, encoding, row, name, max_length, stride)
    return windows


def _windows(tokenizer: Any, encoding: Any, row: int, name: str, max_length: int, stride: int) -> Iterator[Window]:
    ids = np.array(encoding.ids, dtype=np.int32)
    types = np.array(encoding.type_ids, dtype=np.int8)
    text = np.array([-1 if number is None else number for number in encoding.sequence_ids], dtype=np.int8)
    context = np.flatnonzero(text == 1)
    if not len(context) or 0 not in text:
        raise UsageError(
            f"{name}: its {'question' if len(context) else 'context'} is empty; fill it in or drop the row"
        )
    first, size = int(context[0]), len(context)
    around = len(ids) - size
    room = max_length - around
    if size > room and room <= stride:
        raise UsageError(
            f"{name}: its question leaves room for {max(room, 0)} tokens of context in a window of {max_length}, and "
            f"--stride {stride} needs more; lower it, raise --max-length or drop the row"
        )
    classifier = np.flatnonzero((text < 0) & (ids == tokenizer.cls_token_id))
    null = int(classifier[0]) if len(classifier) else 0
    characters = np.array(encoding.offsets, dtype=np.int32)[context]
    for begin in range(0, max(size - stride, 1), max(room - stride, 1)):
        end = min(begin + room, size)
        kept = np.r_[:first, first + begin : first + end, first + size : len(ids)]
        yield Window(
            row=row,
            input_ids=ids[kept],
            token_type_ids=types[kept],
            null=null if null < first else null - size + end - begin,
            first=first,
            begin=begin,
            end=end,
            characters=characters,
        )
