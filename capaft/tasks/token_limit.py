"""How many tokens a model takes: what was asked for, but no more than its tokenizer and its positions allow."""

from __future__ import annotations

import sys

from capaft.base_model import BaseModel


def token_limit(base: BaseModel, max_length: int) -> int:
    """Tokens that an input of this model may have, at most `max_length`."""
    return min(max_length, base.processor.model_max_length, positions(base))


def positions(base: BaseModel) -> int:
    """Positions that the model was made for; those without a table or a number of them take any."""
    found = getattr(base.model.config.get_text_config(), "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else sys.maxsize
