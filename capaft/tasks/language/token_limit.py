"""Limits of a model: on its input, as its tokenizer and its positions allow, and on its tokens."""

from __future__ import annotations

import sys
from typing import Any

from torch import nn

from capaft.model.load import BaseModel
from capaft.support.errors import UsageError

# Names that models give to their table of learnt positions.
_TABLES = ("position_embeddings", "embed_positions")


def token_limit(base: BaseModel, max_length: int) -> int:
    """Maximum number of tokens in an input of this model, at most `max_length`.

    Raises:
        UsageError: the model has no positions.
    """
    if model_positions(base) < 1:
        raise UsageError(
            f"--model {base.base.name} has no position for a token: its config.json gives max_position_embeddings as "
            f"{base.model.config.get_text_config().max_position_embeddings}; get it again"
        )
    return min(max_length, base.processor.model_max_length, model_positions(base))


def model_positions(base: BaseModel) -> int:
    """Number of positions that the model was made for; unlimited if its configuration has none."""
    positions = getattr(base.model.config.get_text_config(), "max_position_embeddings", None)
    return positions - _unused(base.model) if isinstance(positions, int) and positions > 0 else sys.maxsize


def vocabulary_size(base: BaseModel) -> int:
    """Number of tokens that a model tells apart, and so of its logits at each position."""
    return int(getattr(base.model.config.get_text_config(), "vocab_size", 0) or 0)


def _unused(model: Any) -> int:
    """Number of table entries that no token uses: RoBERTa and similar models count positions from after padding's."""
    for name, module in model.named_modules() if isinstance(model, nn.Module) else ():
        is_table = name.rpartition(".")[2] in _TABLES and isinstance(module, nn.Embedding)
        if is_table and module.padding_idx is not None:
            return int(module.padding_idx) + 1
    return 0
