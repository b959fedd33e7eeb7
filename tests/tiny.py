"""Tiny random models, for tests that need an architecture and not what it has learnt."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PretrainedConfig,
    PreTrainedModel,
)

from capaft.attach import Adapter

IDS = torch.tensor([[3, 14, 15, 9, 26, 5, 35, 8], [2, 7, 18, 28, 1, 8, 2, 8]])


def build(kind: type[PreTrainedModel], config: PretrainedConfig) -> Any:
    """A model with random weights of its own, whatever the global generator's state, and in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(config).eval()
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                nn.init.normal_(parameter, std=0.02)
    return model


@cache
def _bert() -> Any:
    return build(
        BertForSequenceClassification,
        BertConfig(
            vocab_size=64,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=32,
            num_labels=3,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        ),
    )


@cache
def _gpt2() -> Any:
    return build(
        GPT2LMHeadModel,
        GPT2Config(
            vocab_size=64,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=32,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
        ),
    )


def bert() -> Any:
    """A classifier whose projections are `nn.Linear`."""
    return _copy(_bert())


def gpt2() -> Any:
    """A language model whose projections are transformers' `Conv1D`, query, key and value fused."""
    return _copy(_gpt2())


def _copy(model: Any) -> Any:
    return copy.deepcopy(model, {id(model.config): model.config})


def logits(model: nn.Module, ids: Tensor = IDS) -> Tensor:
    return model(input_ids=ids.to(next(model.parameters()).device)).logits


def scramble(adapter: Adapter, seed: int = 0) -> Adapter:
    """Give an adapter numbers as training might: coefficients are few, so each has to be larger than an entry."""
    generator = torch.Generator().manual_seed(seed)
    scale = 1.0 if adapter.plan.stack.k else 0.3
    for numbers in adapter.numbers.values():
        numbers.data.copy_(scale * torch.randn(numbers.shape, generator=generator))
    return adapter


def train(model: nn.Module, steps: int = 2, seed: int = 0) -> nn.Module:
    """A few steps on a loss that every trained number takes part in."""
    wanted = torch.randn(logits(model).shape, generator=torch.Generator().manual_seed(seed))
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(steps):
        optimiser.zero_grad()
        found = logits(model).float()
        (found - wanted.to(found.device)).square().sum().backward()
        optimiser.step()
    return model
