"""Plain text for language models: one column, tokenised, row by row or packed into blocks.

Packing (as in the training of GPT-2 and RoBERTa) joins all texts into one stream and cuts it: no token is lost and none
is padding, but a block may begin in the middle of one text and continue with the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from capaft.support.errors import UsageError
from capaft.tasks.base.columns import Columns, ask_for_column, find_column, is_id, is_text
from capaft.tasks.language.long_texts import PIECE, ids_of, plain_ids

if TYPE_CHECKING:
    from datasets import Dataset

_NAMES = (("text",), ("content", "body", "document"), ("sentence", "article", "review", "abstract"))


def recognise_plain_text(rows: Dataset, user_columns: Mapping[str, str | None]) -> Columns:
    """The column of text: the user's choice, the one with a usual name, or the only one.

    Raises:
        UsageError: there is none, or there are several.
    """
    named = find_column(rows, "text", user_columns.get("text"), _NAMES, is_text, "text")
    columns = [name for name, feature in rows.features.items() if is_text(feature) and not is_id(name)]
    if named is None and len(columns) != 1:
        ask_for_column(rows, "text", "several columns could be" if columns else "there is no column of text")
    return Columns(named or columns[0])


def tokenise_plain(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of texts, without special tokens.

    Raises:
        UsageError: one is too long to be tokenised.
    """
    if all(len(text) <= PIECE for text in texts):
        return ids_of(tokenizer, texts)
    return [plain_ids(tokenizer, text) for text in texts]


def surrounding_tokens(tokenizer: Any, role: str = "text") -> tuple[list[int], list[int]]:
    """Special tokens that the tokenizer puts before and after a `text`, or a `text_target`."""
    text = {role: "a"}
    whole, inner = tokenizer(**text)["input_ids"], tokenizer(**text, add_special_tokens=False)["input_ids"]
    start = next(i for i in range(len(whole)) if whole[i : i + len(inner)] == inner)
    return whole[:start], whole[start + len(inner) :]


def special_tokens(tokenizer: Any) -> set[int]:
    """Tokens that are not text, including those of chat templates."""
    return {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}


def end_of_text_token(tokenizer: Any) -> int:
    """The token that ends a text, or else the separator token.

    Raises:
        UsageError: the tokenizer has neither.
    """
    token = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    if token is None:
        raise UsageError("the tokenizer has neither an end-of-text nor a separator token; add one to the checkpoint")
    return int(token)


def pack_blocks(sequences: Iterable[Sequence[int]], length: int) -> Iterator[NDArray[np.int64]]:
    """Join the sequences and cut them into blocks of `length` tokens; the last may be shorter."""
    stream: list[int] = []
    for sequence in sequences:
        stream.extend(sequence)
        full = len(stream) - len(stream) % length
        yield from np.array(stream[:full], dtype=np.int64).reshape(-1, length)
        del stream[:full]
    if stream:
        yield np.array(stream, dtype=np.int64)
