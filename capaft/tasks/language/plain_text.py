"""Plain text as language models read it: one column, tokenised, row by row or packed into blocks.

Packing (as GPT-2 and RoBERTa were trained) joins all texts into one stream and cuts it: no token is lost and none is
padding, but a block may begin in the middle of a text and hold the end of another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from capaft.support.errors import UsageError
from capaft.tasks.base.columns import Columns, ask_for_column, find_column, is_id, is_text, row_texts

if TYPE_CHECKING:
    from datasets import Dataset

_NAMES = (("text",), ("content", "body", "document"), ("sentence", "article", "review", "abstract"))


def recognise_plain_text(rows: Dataset, given: Mapping[str, str | None]) -> Columns:
    """The column of text: the one named, the one with a usual name, or the only one.

    Raises:
        UsageError: there is none, or there are several.
    """
    found = find_column(rows, "text", given.get("text"), _NAMES, is_text, "text")
    columns = [name for name, feature in rows.features.items() if is_text(feature) and not is_id(name)]
    if found is None and len(columns) != 1:
        ask_for_column(rows, "text", "several columns could be" if columns else "there is no column of text")
    return Columns(found or columns[0])


def tokenise_rows(tokenizer: Any, rows: Dataset, columns: Columns) -> list[list[int]]:
    """The tokens of each row that has any text, without special tokens.

    Raises:
        UsageError: a row has no value, or none has text.
    """
    found = [text for text in row_texts(rows, columns)[0] if text]
    if not found:
        raise UsageError(f"every text in column {columns.text!r} is empty; choose another with --text-column")
    return tokenise_plain(tokenizer, found)


def tokenise_plain(tokenizer: Any, found: Sequence[str]) -> list[list[int]]:
    """Token ids of texts as they are."""
    return list(
        tokenizer(list(found), add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    )


def surrounding_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before and after one text."""
    whole, inner = tokenizer("a")["input_ids"], tokenizer("a", add_special_tokens=False)["input_ids"]
    start = next(i for i in range(len(whole)) if whole[i : i + len(inner)] == inner)
    return whole[:start], whole[start + len(inner) :]


def special_tokens(tokenizer: Any) -> set[int]:
    """The tokens that stand for no text, those of chat templates among them."""
    return {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}


def end_of_text_token(tokenizer: Any) -> int:
    """The token that ends a text, or else the one that separates two.

    Raises:
        UsageError: the tokenizer has neither.
    """
    found = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    if found is None:
        raise UsageError("the tokenizer has neither an end-of-text nor a separator token; add one to the checkpoint")
    return int(found)


def pack_blocks(sequences: Sequence[Sequence[int]], length: int) -> list[NDArray[np.int64]]:
    """The joined sequences, cut into blocks of `length` tokens, of which the last may be shorter."""
    stream = np.concatenate([np.asarray(sequence, dtype=np.int64) for sequence in sequences])
    return [stream[start : start + length] for start in range(0, len(stream), length)]
