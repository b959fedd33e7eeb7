"""Rows of an embedding for tokens that only the tokenizer has."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import naive_reader
import pytest
import torch
from tiny import build
from tiny_text import tokenizer
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

from capaft.model.vocabulary import check_tokenizer, embedding_rows, resize_embeddings, rows_needed
from capaft.support.errors import UsageError

GPT2 = GPT2Config(vocab_size=50, n_embd=8, n_layer=1, n_head=2, n_positions=16)
BERT = BertConfig(vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)


def resized(kind: Any, config: Any, seed: int = 5, **changes: Any) -> Any:
    model = build(kind, type(config)(**{**config.to_dict(), **changes}))
    resize_embeddings(model, 53, seed)
    return model


def test_new_rows_come_from_the_seed_around_the_mean() -> None:
    before = build(GPT2LMHeadModel, GPT2).get_input_embeddings().weight.detach().double()
    state = torch.get_rng_state()
    model = resized(GPT2LMHeadModel, GPT2)
    assert torch.equal(torch.get_rng_state(), state)
    rows = model.get_input_embeddings().weight.detach()
    drawn = torch.from_numpy(naive_reader.uniform(naive_reader.key_of(5, "wte", "weight", "new rows"), 3 * 8))
    expected = before.mean(0) + before.std(0, correction=0) * drawn.view(3, 8) * 3**0.5
    torch.testing.assert_close(rows[50:], expected.float())
    torch.testing.assert_close(rows[:50], before.float(), rtol=0, atol=0)
    assert model.config.vocab_size == embedding_rows(model) == model(torch.tensor([[52]])).logits.shape[-1] == 53
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert not torch.equal(rows[50:], resized(GPT2LMHeadModel, GPT2, seed=6).get_input_embeddings().weight[50:])


def test_outputs_are_added_too() -> None:
    apart = resized(GPT2LMHeadModel, GPT2, tie_word_embeddings=False)
    assert apart.lm_head.weight.shape == (53, 8)
    assert not torch.equal(apart.lm_head.weight[50:], apart.get_input_embeddings().weight[50:])
    masked = resized(BertForMaskedLM, BERT)
    bias = masked.get_output_embeddings().bias
    torch.testing.assert_close(bias[50:], bias[:50].mean().expand(3))
    assert masked(torch.tensor([[52]])).logits.shape[-1] == 53


def test_a_larger_embedding_stays() -> None:
    model = build(GPT2LMHeadModel, GPT2)
    resize_embeddings(model, 40, 0)
    assert embedding_rows(model) == 50


def test_size_of_a_vocabulary() -> None:
    assert rows_needed(tokenizer()) == len(tokenizer())
    # Numbers may leave gaps.
    assert rows_needed(SimpleNamespace(get_vocab=lambda: {"a": 0, "b": 9})) == 10


@pytest.mark.parametrize("limit", [0, -1, "x", 1.5, [], float("inf"), float("nan")])
def test_a_maximum_length_that_is_none(limit: object) -> None:
    processor = tokenizer()
    processor.model_max_length = limit
    with pytest.raises(UsageError, match=r"^--model m: .* model_max_length as"):
        check_tokenizer(processor, "m")


def test_a_tokenizer_without_input_ids_or_that_fails() -> None:
    processor = tokenizer()
    check_tokenizer(processor, "m")
    processor.model_input_names = ["x"]
    with pytest.raises(UsageError, match="model_input_names"):
        check_tokenizer(processor, "m")

    class Failing:
        model_max_length = 8
        model_input_names = ("input_ids",)

        def __call__(self, text: str) -> None:
            raise Exception("Missing [UNK] token")

    with pytest.raises(UsageError, match=r"its tokenizer fails \(Missing \[UNK\] token\)"):
        check_tokenizer(Failing(), "m")
