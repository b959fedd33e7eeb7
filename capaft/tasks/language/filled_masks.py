"""Words for the masks in texts, with their probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch import Tensor

from capaft.support.errors import UsageError
from capaft.tasks.base.columns import Columns, row_numbers, text_values
from capaft.tasks.base.features import Features
from capaft.tasks.base.task_answers import Record
from capaft.tasks.labels.problem import rounded
from capaft.tasks.language.framing import frame
from capaft.tasks.language.long_texts import ids_of
from capaft.tasks.language.plain_text import surrounding_tokens

if TYPE_CHECKING:
    from datasets import Dataset

MOST = 50
"""Words that are listed for a mask at most."""


class Filled(NamedTuple):
    """The likeliest tokens for the masks of a text.

    Attributes:
        words: the likeliest tokens for each mask, as text, the likeliest first.
        shares: the probability of each.
    """

    words: list[list[str]]
    shares: list[list[float]]


@dataclass(frozen=True)
class TextWithMasks:
    """A text, and what stands in it for a hidden word."""

    text: str
    mask: str


def masked_texts(tokenizer: Any, rows: Dataset, columns: Columns, room: int) -> Features:
    """Texts that hold masks, each between the special tokens of the tokenizer.

    Args:
        tokenizer: of the model.
        rows: the rows.
        columns: their columns.
        room: tokens of a text at most.

    Raises:
        UsageError: a text holds no mask, or one beyond the limit.
    """
    before, after = surrounding_tokens(tokenizer)
    around, mask = frame(tokenizer, before, after), tokenizer.mask_token
    texts = [around.strip(text) for text in text_values(rows, columns)[0]]
    encoded = ids_of(tokenizer, texts)
    masks = [[at for at, token in enumerate(ids) if token == tokenizer.mask_token_id] for ids in encoded]
    for row, places in zip(row_numbers(rows), masks, strict=True):
        if not places:
            raise UsageError(f"row {row}: there is no {mask} to fill")
        if places[-1] >= room:
            raise UsageError(f"row {row}: a {mask} lies beyond the first {room} tokens")
    inputs = [[*before, *ids[:room], *after] for ids in encoded]
    return Features(
        {"input_ids": inputs, "masks": [[len(before) + at for at in places] for places in masks]},
        np.array([len(ids) for ids in inputs], dtype=np.int64),
        truncated=sum(len(ids) > room for ids in encoded),
        sources=[TextWithMasks(text, mask) for text in texts],
    )


def filled(tokenizer: Any, logits: Tensor) -> Filled:
    """The likeliest tokens for the masks of a text.

    Args:
        tokenizer: of the model.
        logits: those at the masks, `(masks, vocabulary)`.
    """
    shares, tokens = logits.float().softmax(-1).topk(min(MOST, logits.shape[-1]))
    return Filled([[_word(tokenizer, token) for token in of_mask] for of_mask in tokens.tolist()], shares.tolist())


def filled_record(source: TextWithMasks, found: Filled, top: int | None) -> Record:
    """The text, its likeliest tokens with their probabilities, and the `top` likeliest for each mask."""
    tokens = [words[0] for words in found.words]
    between = source.text.split(source.mask)
    # Part of a word, as WordPiece has it, continues the one before it.
    text = "".join(part + token.removeprefix("##") for part, token in zip(between, [*tokens, ""], strict=False))
    record: Record = {"text": text, "tokens": tokens, "probabilities": [rounded(of[0]) for of in found.shares]}
    if top is None:
        return record
    candidates = [
        [{"token": word, "probability": rounded(share)} for word, share in zip(words, shares, strict=True)][:top]
        for words, shares in zip(found.words, found.shares, strict=True)
    ]
    return {**record, "candidates": candidates}


def _word(tokenizer: Any, token: int) -> str:
    return str(tokenizer.decode([token], clean_up_tokenization_spaces=False)).strip()
