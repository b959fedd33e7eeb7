"""The tokens in examples, compared with what the model has embeddings for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from capaft.data.spool import StoredColumn
from capaft.model.load import BaseModel
from capaft.model.vocabulary import embedding_rows, rows_needed
from capaft.support.errors import UsageError
from capaft.support.printable import printable
from capaft.tasks.base.features import Features

# Inputs that hold tokens; a label of -100 is none.
_TOKENS = ("input_ids", "labels")


def check_token_ids(base: BaseModel, features: Features) -> None:
    """Refuse tokens that the model has no embedding for, before it looks them up.

    A tokenizer may have more tokens than the model as long as the examples do not contain them.

    Args:
        base: the base model.
        features: the examples.

    Raises:
        UsageError: names a token, or a token type, beyond the embedding.
    """
    if not hasattr(base.processor, "get_vocab") or "input_ids" not in features.inputs:
        return
    check_tokens(base, [base.processor.pad_token_id or 0])
    rows = embedding_rows(base.model)
    if rows_needed(base.processor) > rows:
        check_tokens(base, [largest_id(features.inputs.get(name, ())) for name in _TOKENS])
    _check_types(base, features)
    if base.model.config.is_encoder_decoder and "labels" in features.inputs:
        start = base.model.config.decoder_start_token_id
        if not isinstance(start, int) or not 0 <= start < rows:
            raise UsageError(
                f"the model's config.json gives decoder_start_token_id as {printable(str(start))[:40]}, which is no "
                "token; set it to the token that its decoder starts with"
            )


def check_tokens(base: BaseModel, ids: Sequence[int]) -> None:
    """Refuse tokens that the model has no embedding for.

    Raises:
        UsageError: names the largest of them.
    """
    rows, largest = embedding_rows(base.model), max(ids)
    if largest >= rows:
        token = printable(str(base.processor.convert_ids_to_tokens(largest)))[:40]
        raise UsageError(
            f"the tokenizer has {rows_needed(base.processor):,} tokens, and the model embeddings for {rows:,}: "
            f"there is none for token {largest}, {token!r}; add new rows with --resize-embeddings, or get the "
            "tokenizer that belongs to the model"
        )


def _check_types(base: BaseModel, features: Features) -> None:
    """Refuse token types beyond the embedding, such as that of second texts."""
    tables = (
        module
        for path, module in base.model.named_modules()
        if path.endswith("token_type_embeddings") and isinstance(module, nn.Embedding)
    )
    table = next(tables, None)
    if table is None or "token_type_ids" not in features.inputs:
        return
    if (largest := largest_id(features.inputs["token_type_ids"])) >= table.num_embeddings:
        raise UsageError(
            f"the tokenizer marks tokens as of type {largest}, and the model has {table.num_embeddings} types "
            "(type_vocab_size); remove token_type_ids from model_input_names in tokenizer_config.json"
        )


def largest_id(values: Any) -> int:
    """The largest number in nested sequences; -1 if there is none."""
    if isinstance(values, np.ndarray) and values.dtype != object:
        return int(values.max(initial=-1))
    if isinstance(values, StoredColumn):
        return values.largest()
    return max((largest_id(value) if hasattr(value, "__len__") else int(value) for value in values), default=-1)
