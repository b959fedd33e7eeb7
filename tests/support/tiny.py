"""Tiny random models, for tests that need an architecture and not what it has learnt."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PretrainedConfig,
)

from capaft.adapter.attach import Adapter

IDS = torch.tensor([[3, 14, 15, 9, 26, 5, 35, 8], [2, 7, 18, 28, 1, 8, 2, 8]])
# The second sequence is shorter.
MASK = torch.tensor([[1] * 8, [1] * 6 + [0] * 2])


def build(kind: Callable[..., nn.Module], *config: PretrainedConfig) -> Any:
    """A model with random weights of its own, whatever the global generator's state, and in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(*config).eval()
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


@cache
def _neox() -> Any:
    return build(
        GPTNeoXForCausalLM,
        GPTNeoXConfig(
            vocab_size=64,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=4,
            intermediate_size=48,
            max_position_embeddings=32,
        ),
    )


@cache
def _mixtral() -> Any:
    return build(
        MixtralForCausalLM,
        MixtralConfig(
            vocab_size=64,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=24,
            max_position_embeddings=32,
            # Every expert has a part in every token, so no choice among them turns with the last digit.
            num_local_experts=2,
            num_experts_per_tok=2,
        ),
    )


class Kernels(nn.Module):
    """An embedding, and convolutions over its sequence and over a picture of it."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(8, 16)
        self.line = nn.Conv1d(16, 16, 3, padding=1, stride=2)
        self.picture = nn.Conv2d(1, 12, (3, 4), padding=(2, 0), stride=(1, 2), dilation=(2, 1))
        self.out = nn.Linear(12 * 4 * 7, 8)

    def forward(self, input_ids: Tensor) -> Any:
        line = torch.tanh(self.line(self.words(input_ids % 8).transpose(1, 2)))
        picture = torch.tanh(self.picture(line.transpose(1, 2)[:, None]))
        return SimpleNamespace(logits=self.out(picture.flatten(1)))


class Reader(nn.Module):
    """Calls one layer, and reads the weight and the bias of another."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(64, 16)
        self.query, self.value = nn.Linear(16, 16), nn.Linear(16, 12)

    def forward(self, input_ids: Tensor) -> Any:
        hidden = torch.tanh(self.query(self.words(input_ids)))
        return SimpleNamespace(logits=F.linear(hidden, self.value.weight, self.value.bias))


@cache
def _kernels() -> Any:
    return build(Kernels)


@cache
def _reader() -> Any:
    return build(Reader)


def bert() -> Any:
    """A classifier whose projections are `nn.Linear`."""
    return _copy(_bert())


def gpt2() -> Any:
    """A language model whose projections are transformers' `Conv1D`, query, key and value fused."""
    return _copy(_gpt2())


def neox() -> Any:
    """A language model whose query, key and value lie side by side in every head of one projection."""
    return _copy(_neox())


def mixtral() -> Any:
    """A mixture of experts that are stacked in one parameter, with fewer keys than queries."""
    return _copy(_mixtral())


def kernels() -> Any:
    """See :class:`Kernels`."""
    return _copy(_kernels())


def reader() -> Any:
    """See :class:`Reader`."""
    return _copy(_reader())


def _copy(model: Any) -> Any:
    """What `copy.deepcopy` gives, in a fraction of the time; but for the configuration, which the copies share."""
    stream, held = _pickled(model)
    copies: dict[int, Any] = {}

    class Unpickler(pickle.Unpickler):
        def persistent_load(self, key: int) -> Any:
            if key not in copies:
                copies[key] = copy.deepcopy(held[key]) if isinstance(held[key], Tensor) else held[key]
            return copies[key]

    return Unpickler(io.BytesIO(stream)).load()


@cache
def _pickled(model: Any) -> tuple[bytes, dict[int, Any]]:
    """A model without its tensors and its configuration, and those by what stands for them."""
    stream, held = io.BytesIO(), {}

    class Pickler(pickle.Pickler):
        def persistent_id(self, found: Any) -> int | None:
            if not isinstance(found, (Tensor, PretrainedConfig)):
                return None
            held[id(found)] = found
            return id(found)

    Pickler(stream, pickle.HIGHEST_PROTOCOL).dump(model)
    return stream.getvalue(), held


def logits(model: nn.Module, ids: Tensor = IDS, mask: Tensor | None = None) -> Tensor:
    device = next(model.parameters()).device
    given = {} if mask is None else {"attention_mask": mask.to(device)}
    return model(input_ids=ids.to(device), **given).logits


def scramble(adapter: Adapter, seed: int = 0) -> Adapter:
    """Give an adapter numbers as training might: coefficients are few, so each has to be larger than an entry."""
    generator = torch.Generator().manual_seed(seed)
    scale = 1.0 if adapter.plan.stack.k else 0.3
    for numbers in adapter.role_parameters.values():
        numbers.data.copy_(scale * torch.randn(numbers.shape, generator=generator))
    return adapter


def train(model: nn.Module, steps: int = 2, seed: int = 0, mask: Tensor | None = None) -> nn.Module:
    """A few steps on a loss that every trained number takes part in."""
    generator, wanted = torch.Generator().manual_seed(seed), None
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(steps):
        optimiser.zero_grad()
        found = logits(model, mask=mask).float()
        wanted = torch.randn(found.shape, generator=generator).to(found.device) if wanted is None else wanted
        (found - wanted).square().sum().backward()
        optimiser.step()
    return model
