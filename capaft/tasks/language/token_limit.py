"""How many tokens a model takes: what was asked for, but no more than its tokenizer and its positions allow."""

from __future__ import annotations

import sys
from typing import Any

from torch import nn

from capaft.model.load import BaseModel

# What models call their table of learnt positions.
_TABLES = ("position_embeddings", "embed_positions")


def token_limit(base: BaseModel, max_length: int) -> int:
    """Tokens that an input of this model may have, at most `max_length`."""
    return min(max_length, base.processor.model_max_length, model_positions(base))


def model_positions(base: BaseModel) -> int:
    """Positions that the model was made for; those without a table or a number of them take any."""
    found = getattr(base.model.config.get_text_config(), "max_position_embeddings", None)
    return found - _unused(base.model) if isinstance(found, int) and found > 0 else sys.maxsize


def _unused(model: Any) -> int:
    """Entries of the table that no token takes: RoBERTa and its kin count positions from after that of padding."""
    for name, module in model.named_modules() if isinstance(model, nn.Module) else ():
        is_table = name.rpartition(".")[2] in _TABLES and isinstance(module, nn.Embedding)
        if is_table and module.padding_idx is not None:
            return int(module.padding_idx) + 1
    return 0
