"""A question with its context, cut into windows that a model can take.

Every window holds the question and the special tokens around a pair, as if its part of the context were the whole;
neighbours overlap by the stride, so that no answer shorter than the stride is cut in every window. The question comes
first whichever side is padded: a causal model then reads the context knowing what to look for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from capaft.support.errors import UsageError
from capaft.tasks.language import long_texts
from capaft.tasks.language.long_texts import beginning, placed_pieces, text_batches


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
        characters: span in the context of each of its tokens of the context, `(end - begin, 2)`: the first character
            and one past the last; some tokens of some tokenizers have empty spans.
    """

    row: int
    input_ids: NDArray[np.int32]
    token_type_ids: NDArray[np.int8]
    null: int
    first: int
    begin: int
    end: int
    characters: NDArray[np.int32]

    def shifted(self, place: tuple[int, int] | None) -> tuple[int, int] | None:
        """The first and the last of its tokens for such tokens of the context, or None if some are outside."""
        if place is None or place[0] < self.begin or place[1] >= self.end:
            return None
        shift = self.first - self.begin
        return place[0] + shift, place[1] + shift

    def text(self, context: str, first: int, last: int) -> str:
        """Text of the tokens from `first` to `last`, without white space around it."""
        return context[slice(*self.place(context, first, last))]

    def place(self, context: str, first: int, last: int) -> tuple[int, int]:
        """Place in the context of that text: its first character, and the one behind its last."""
        start, end = int(self.characters[first - self.first, 0]), int(self.characters[last - self.first, 1])
        text = context[start:end]
        start += len(text) - len(text.lstrip())
        return start, start + len(text.strip())

    def answerable(self) -> NDArray[np.bool_]:
        """Mask of the tokens that stand for characters of the context, `(tokens,)`."""
        mask = np.zeros(len(self.input_ids), dtype=np.bool_)
        starts, ends = self.characters.T
        mask[self.first : self.first + self.end - self.begin] = starts < ends
        return mask


@dataclass(frozen=True)
class TokenisedRow:
    """A question, the tokens around it and its context, and those of the context.

    Attributes:
        row: index of the row.
        ids: tokens of the context, `(context tokens,)`.
        characters: span of each of them in the context, `(context tokens, 2)`.
        before: tokens before the context and their types, `(2, tokens)`.
        after: tokens after it, likewise.
        segment: type of the context's tokens.
        null: place of the token that means "not here" among those before the context, or, below 0, among those after.
    """

    row: int
    ids: NDArray[np.int32]
    characters: NDArray[np.int32]
    before: NDArray[np.int32]
    after: NDArray[np.int32]
    segment: int
    null: int

    def tokens(self, start: int, end: int) -> tuple[int, int] | None:
        """First and last token of the context of the characters from `start` to before `end`; None if there is none."""
        starts, ends = self.characters.T
        inside = np.flatnonzero((starts < ends) & (ends > start) & (starts < end))
        return (int(inside[0]), int(inside[-1])) if len(inside) else None

    def windows(self, max_length: int, stride: int, name: str) -> Iterator[Window]:
        """The windows, in order; see `tokenise_rows`.

        Raises:
            UsageError: they cannot advance.
        """
        first, size = self.before.shape[1], len(self.ids)
        room = max_length - first - self.after.shape[1]
        if size > room and room <= stride:
            raise UsageError(
                f"{name}: its question leaves room for {max(room, 0)} tokens of context in a window of {max_length}, "
                f"and --stride {stride} needs more; lower it, raise --max-length or drop the row"
            )
        for begin in range(0, max(size - stride, 1), max(room - stride, 1)):
            end = min(begin + room, size)
            part = np.stack([self.ids[begin:end], np.full(end - begin, self.segment, np.int32)])
            ids, types = np.concatenate([self.before, part, self.after], axis=1)
            yield Window(
                row=self.row,
                input_ids=ids,
                token_type_ids=types.astype(np.int8),
                null=self.null if self.null >= 0 else self.null + len(ids),
                first=first,
                begin=begin,
                end=end,
                characters=self.characters[begin:end],
            )


def tokenise_rows(
    tokenizer: Any, questions: Sequence[str], contexts: Sequence[str], max_length: int, numbers: Sequence[int] = ()
) -> Iterator[TokenisedRow]:
    """The tokens of all rows, of which a few at a time are in memory; a long context is tokenised in pieces.

    Args:
        tokenizer: a fast one, which knows the place of each token in the text.
        questions: of each row.
        contexts: of each row.
        max_length: largest number of tokens in a window; of a longer question a part is enough.
        numbers: of the rows, for messages; by default they are counted from 1.

    Raises:
        UsageError: the tokenizer is slow; a question or context is empty, or cannot be tokenised in pieces.
    """
    if not tokenizer.is_fast:
        raise UsageError("question answering needs a model with a fast tokenizer, which knows the places of its tokens")
    row = 0
    pairs = zip((beginning(tokenizer, question.strip(), max_length) for question in questions), contexts, strict=True)
    for batch in text_batches(pairs):
        heads = [_head(context or "") for _, context in batch]
        encoded = tokenizer([question for question, _ in batch], heads, verbose=False).encodings
        for (_, context), head, encoding in zip(batch, heads, encoded, strict=True):
            tokenised = _tokenised(tokenizer, encoding, row, f"row {numbers[row] if numbers else row + 1}")
            if head is not context:
                ids, characters = zip(*placed_pieces(tokenizer, context or ""), strict=True)
                tokenised = dataclasses.replace(
                    tokenised, ids=np.concatenate(ids), characters=np.concatenate(characters)
                )
            yield tokenised
            row += 1


def _head(context: str) -> str:
    """A context, or as much of a long one as has a token."""
    return context if len(context) <= long_texts.PIECE else context.lstrip()[: long_texts.PIECE]


def _tokenised(tokenizer: Any, encoding: Any, row: int, name: str) -> TokenisedRow:
    ids = np.array(encoding.ids, dtype=np.int32)
    both = np.stack([ids, np.array(encoding.type_ids, dtype=np.int32)])
    text = np.array([-1 if number is None else number for number in encoding.sequence_ids], dtype=np.int8)
    context = np.flatnonzero(text == 1)
    if not len(context) or 0 not in text:
        raise UsageError(
            f"{name}: its {'question' if len(context) else 'context'} is empty; fill it in or drop the row"
        )
    first, last = int(context[0]), int(context[-1])
    classifier = np.flatnonzero((text < 0) & (ids == tokenizer.cls_token_id))
    null = int(classifier[0]) if len(classifier) else 0
    return TokenisedRow(
        row=row,
        ids=ids[context],
        characters=np.array(encoding.offsets, dtype=np.int32)[context],
        before=both[:, :first],
        after=both[:, last + 1 :],
        segment=int(both[1, first]),
        null=null if null < first else null - len(ids),
    )
