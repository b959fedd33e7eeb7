"""Texts of any length: tokenised in pieces, and only as far as a limit on their tokens needs.

A tokenizer takes about a hundred bytes for each character of a text, and its process ends if it cannot have them. So a
long text goes to it in pieces, which end between a word and a blank. A piece is tokenised behind the words that come
before it, so that its tokens are those that it has in the whole text, and a few words on either side of a cut show that
it changes none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from capaft.support.errors import UsageError

PIECE = 2**15
"""Characters of a piece, and of a text that goes to the tokenizer as it is."""
LONGEST_PIECE = 2**21
"""Characters that are tokenised at a time at most."""
# Characters of the words on either side of a cut, and tokens before it that are of no use.
_NEAR = 64
_SPARE = 8
_WORD_END = re.compile(r"[^\W_](?=[ \n])")
# WordPiece has one token for a word of more than a hundred letters, however many these are.
_LONG_WORD = re.compile(r"([A-Za-z0-9]{1000})[A-Za-z0-9]+")


def ids_of(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of short texts, without special tokens."""
    # Tokenizers cannot take an empty list.
    if not texts:
        return []
    return list(
        tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    )


def plain_ids(tokenizer: Any, text: str) -> list[int]:
    """The token ids of a text of any length, without special tokens.

    Raises:
        UsageError: a part of it cannot be tokenised by itself, and is too long.
    """
    return [token for _, ids in _pieces(tokenizer, _condensed(tokenizer, text)) for token in ids]


def placed_pieces(tokenizer: Any, text: str) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int32]]]:
    """The token ids of the pieces of a text, and the characters of the text that each stands for, `(tokens, 2)`.

    Raises:
        UsageError: as `plain_ids`.
    """
    start, before = 0, ""
    while start < len(text):
        end = _piece_end(tokenizer, text, start)
        parts = [*filter(None, [before]), before + text[start:end]]
        *context, both = tokenizer(parts, add_special_tokens=False, verbose=False).encodings
        known = sum(len(encoding.ids) for encoding in context)
        places = np.array(both.offsets, dtype=np.int32).reshape(-1, 2)[known:] + np.int32(start - len(before))
        yield np.array(both.ids, dtype=np.int32)[known:], places
        before, start = text[_near(text, end) : end], end


def count_tokens(tokenizer: Any, text: str) -> int:
    """Number of tokens of a text, without special tokens.

    Raises:
        UsageError: as `plain_ids`.
    """
    return sum(len(ids) for _, ids in _pieces(tokenizer, _condensed(tokenizer, text)))


def beginning(tokenizer: Any, text: str, tokens: int) -> str:
    """A part of a text with more than `tokens` tokens, the first `tokens` of which are those of the text, or all of it.

    Raises:
        UsageError: as `plain_ids`.
    """
    if len(text) <= PIECE:
        return text
    text = _condensed(tokenizer, text)
    count = 0
    try:
        for end, ids in _pieces(tokenizer, text):
            count += len(ids)
            if count > tokens + _SPARE:
                return text[:end]
    except UsageError:
        part = _within_word(tokenizer, text, tokens)
        if part is None:
            raise
        return part
    return text


def ending(tokenizer: Any, text: str, tokens: int) -> str:
    """The end of a text with more than `tokens` tokens, the last of which are those of the text, or all of it.

    Raises:
        UsageError: as `plain_ids`.
    """
    size = PIECE
    text = _condensed(tokenizer, text)
    while size < len(text):
        start = _word_end(text, len(text) - size)
        if start and _is_cut(tokenizer, text, start):
            before = text[_near(text, start) : start]
            context, both = ids_of(tokenizer, [before, before + text[start:]])
            if len(both) - len(context) > tokens:
                return before + text[start:]
        if size >= LONGEST_PIECE:
            raise UsageError(f"a text of {len(text):,} characters cannot be cut on the left; shorten it")
        size *= 4
    return text


def shortened(tokenizer: Any, limit: int, first: str, second: str | None = None) -> tuple[str, str | None]:
    """Texts that are cut to the same tokens as a text, or a pair of texts, and are not much longer than these.

    Of a pair, tokenizers cut the longer one until both fit, so that the longer one must stay the longer.

    Args:
        tokenizer: the tokenizer.
        limit: tokens that a text or a pair is cut to.
        first: the text.
        second: the second text of a pair.

    Raises:
        UsageError: as `plain_ids`.
    """
    part = ending if getattr(tokenizer, "truncation_side", "right") == "left" else beginning
    if second is None:
        return part(tokenizer, first, limit), None
    if max(len(first), len(second)) <= PIECE:
        return first, second
    # Where both are cut, an odd token goes to the longer one.
    swapped = count_tokens(tokenizer, first) > count_tokens(tokenizer, second)
    shorter, longer = (second, first) if swapped else (first, second)
    shorter = part(tokenizer, shorter, limit)
    longer = part(tokenizer, longer, max(limit, count_tokens(tokenizer, shorter)))
    return (longer, shorter) if swapped else (shorter, longer)


def _pieces(tokenizer: Any, text: str) -> Iterator[tuple[int, list[int]]]:
    """The tokens of the pieces of a text, each with the place of the character after it."""
    start, before = 0, ""
    while start < len(text):
        end = _piece_end(tokenizer, text, start)
        *context, both = ids_of(tokenizer, [*filter(None, [before]), before + text[start:end]])
        yield end, both[sum(map(len, context)) :]
        before, start = text[_near(text, end) : end], end


def _piece_end(tokenizer: Any, text: str, start: int) -> int:
    """The place at which the piece from `start` ends."""
    size = PIECE
    while start + size < len(text):
        end = _word_end(text, start + size)
        if end > start and _is_cut(tokenizer, text, end):
            return end
        if size >= LONGEST_PIECE:
            raise UsageError(
                f"a text of {len(text):,} characters, {text[:20]!r}..., has {size:,} without a blank between two "
                "words, and cannot be tokenised in parts; shorten it or drop the row"
            )
        size *= 4
    return len(text)


def _is_cut(tokenizer: Any, text: str, place: int) -> bool:
    """True if the tokens of the words before a place are the same without those after it."""
    before = text[_near(text, place) : place]
    context, both = ids_of(tokenizer, [before, before + text[place : place + 4 * _NEAR]])
    return both[: len(context)] == context


def _near(text: str, place: int) -> int:
    """The end of a word a little before a place."""
    return max(_word_end(text, max(place - _NEAR, 0)), place - PIECE, 0)


def _word_end(text: str, place: int) -> int:
    """The last end of a word before a blank, at a place or up to a piece before it; 0 if there is none."""
    for window in (4 * _NEAR, LONGEST_PIECE):
        ends = [match.end() for match in _WORD_END.finditer(text, max(place - window, 0), place + 1)]
        if ends:
            return ends[-1]
    return 0


def _condensed(tokenizer: Any, text: str) -> str:
    """A text without the middle of endless words, where a word of more letters has the same token."""
    model: Any = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    if len(text) <= PIECE or type(model).__name__ != "WordPiece" or model.max_input_chars_per_word >= 1000:
        return text
    return _LONG_WORD.sub(r"\1", text)


def _within_word(tokenizer: Any, text: str, tokens: int) -> str | None:
    """A part that ends within a word, if twice as much begins with the same tokens; None if it does not.

    Merges of neighbours go from left to right. Unigram weighs all ways to divide a word, so that there the first token
    may depend on the last letter.
    """
    model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    size = PIECE
    while type(model).__name__ == "BPE" and size <= LONGEST_PIECE:
        part, longer = ids_of(tokenizer, [text[:size], text[: 2 * size]])
        if len(part) > tokens + _SPARE and part[:tokens] == longer[:tokens]:
            return text[:size]
        size *= 4
    return None


def text_batches(texts: Iterable[tuple[str, str | None]], rows: int = 1000) -> Iterator[list[tuple[str, str | None]]]:
    """Texts or pairs of texts in batches of at most `rows`, and not many more characters than a long piece has."""
    batch: list[tuple[str, str | None]] = []
    characters = 0
    for first, second in texts:
        batch.append((first, second))
        characters += len(first) + len(second or "")
        if len(batch) == rows or characters > LONGEST_PIECE // 2:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
