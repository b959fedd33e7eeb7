"""The token limit is the least of the requested length, the tokenizer's limit and the model's positions."""

from __future__ import annotations

import sys

import pytest
import torch
from tiny import build
from tiny_text import SIZE, base, tokenizer
from transformers import RobertaConfig, RobertaModel

from capaft.model.load import BaseModel
from capaft.model.origin import Origin
from capaft.tasks.language.token_limit import model_positions, token_limit


def test_the_least_of_three() -> None:
    limited = tokenizer()
    gpt2, t5 = base("gpt2", limited), base("t5", limited)
    assert (model_positions(gpt2), model_positions(t5)) == (64, sys.maxsize)
    assert [token_limit(gpt2, length) for length in (10, 64, 100)] == [10, 64, 64]
    assert token_limit(t5, 100) == 100
    limited.model_max_length = 20
    assert token_limit(gpt2, 100) == token_limit(t5, 100) == 20


def test_positions_may_begin_after_that_of_padding() -> None:
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = RobertaConfig(vocab_size=SIZE, **shape, max_position_embeddings=20, pad_token_id=1)
    roberta = BaseModel(build(RobertaModel, config), tokenizer(), Origin("tiny", None), (), True)
    assert (model_positions(roberta), token_limit(roberta, 99)) == (18, 18)
    assert torch.isfinite(roberta.model(torch.full((1, 18), 7)).last_hidden_state).all()
    with pytest.raises((IndexError, RuntimeError)):
        roberta.model(torch.full((1, 19), 7))
