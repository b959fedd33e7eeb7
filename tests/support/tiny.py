"""Tiny random models, for tests that need an architecture but no trained weights."""

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

from capaft.adapter.module import Adapter

IDS = torch.tensor([[3, 14, 15, 9, 26, 5, 35, 8], [2, 7, 18, 28, 1, 8, 2, 8]])
# The second sequence is shorter.
MASK = torch.tensor([[1] * 8, [1] * 6 + [0] * 2])


def build(kind: Callable[..., nn.Module], *config: PretrainedConfig) -> Any:
    """A model in evaluation mode with the same random weights whatever the global generator's state."""
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
            # Every expert takes part in every token, so that rounding never changes the choice of experts.
            num_local_experts=2,
            num_experts_per_tok=2,
        ),
    )


class Kernels(nn.Module):
    """An embedding, a convolution over its sequence with a batch norm, and one over that as a picture."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(8, 16)
        self.line = nn.Conv1d(16, 16, 3, padding=1, stride=2)
        self.norm = nn.BatchNorm1d(16)
        self.picture = nn.Conv2d(1, 12, (3, 4), padding=(2, 0), stride=(1, 2), dilation=(2, 1))
        self.out = nn.Linear(12 * 4 * 7, 8)

    def forward(self, input_ids: Tensor) -> Any:
        line = torch.tanh(self.norm(self.line(self.words(input_ids % 8).transpose(1, 2))))
        picture = torch.tanh(self.picture(line.transpose(1, 2)[:, None]))
        return SimpleNamespace(logits=self.out(picture.flatten(1)))


class Reader(nn.Module):
    """A model that calls one layer, and reads the weight and the bias of another."""

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
    """A language model whose projections are transformers' `Conv1D`, with query, key and value fused."""
    return _copy(_gpt2())


def neox() -> Any:
    """A language model whose query, key and value lie side by side in every head of one projection."""
    return _copy(_neox())


def mixtral() -> Any:
    """A mixture of experts stacked in one parameter, with fewer key heads than query heads."""
    return _copy(_mixtral())


def kernels() -> Any:
    """See `Kernels`."""
    return _copy(_kernels())


def reader() -> Any:
    """See `Reader`."""
    return _copy(_reader())


def _copy(model: Any) -> Any:
    """Copy like `copy.deepcopy`, in a fraction of the time; of the configuration only what it is made of is shared."""
    stream, originals = _pickled(model)
    copies: dict[int, Any] = {}

    class Unpickler(pickle.Unpickler):
        def persistent_load(self, key: int) -> Any:
            if key not in copies:
                original = originals[key]
                # An adapter's labels are put into the configuration, and must not reach the next test.
                copies[key] = copy.deepcopy(original) if isinstance(original, Tensor) else copy.copy(original)
            return copies[key]

    return Unpickler(io.BytesIO(stream)).load()


@cache
def _pickled(model: Any) -> tuple[bytes, dict[int, Any]]:
    """A pickled model without its tensors and configuration, and these by their identifiers."""
    stream, originals = io.BytesIO(), {}

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> int | None:
            if not isinstance(value, (Tensor, PretrainedConfig)):
                return None
            originals[id(value)] = value
            return id(value)

    Pickler(stream, pickle.HIGHEST_PROTOCOL).dump(model)
    return stream.getvalue(), originals


def logits(model: nn.Module, ids: Tensor = IDS, mask: Tensor | None = None) -> Tensor:
    device = next(model.parameters()).device
    masking = {} if mask is None else {"attention_mask": mask.to(device)}
    return model(input_ids=ids.to(device), **masking).logits


def scramble(adapter: Adapter, seed: int = 0) -> Adapter:
    """Give an adapter parameters as training might: coefficients are few, so they must be larger than entries."""
    generator = torch.Generator().manual_seed(seed)
    scale = 1.0 if adapter.plan.stack.k else 0.3
    for parameter in adapter.role_parameters.values():
        parameter.data.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return adapter


def train(model: nn.Module, steps: int = 2, seed: int = 0, mask: Tensor | None = None) -> nn.Module:
    """Take a few steps on a loss that every trainable parameter takes part in."""
    generator, target = torch.Generator().manual_seed(seed), None
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        output = logits(model, mask=mask).float()
        target = torch.randn(output.shape, generator=generator).to(output.device) if target is None else target
        (output - target).square().sum().backward()
        optimizer.step()
    return model
