from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils import spectral_norm as hooked_spectral_norm
from transformers import (
    IBertConfig,
    IBertForSequenceClassification,
    ResNetConfig,
    ResNetForImageClassification,
    Trainer,
    TrainingArguments,
)

import capaft


class Averaging(nn.Module):
    """A leaf that averages its input while it trains."""

    def __init__(self, *, persistent: bool = True) -> None:
        super().__init__()
        self.register_buffer("average", torch.zeros(6), persistent=persistent)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.average.mul_(0.9).add_(x.detach().mean(0), alpha=0.1)
        return x - self.average


class Counting(nn.Module):
    """A leaf that assigns to its buffer, and has dropout in its own code."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen = self.seen + len(x)
        return nn.functional.dropout(x, 0.5, self.training)


def move_towards(average: Tensor, value: Tensor) -> None:
    average.data.lerp_(value, 0.1)


class Codebook(nn.Module):
    """Entries that move towards their inputs; a function outside changes them, when its parent tells it to."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("entries", torch.randn(4, 6, generator=torch.Generator().manual_seed(0)))

    def update(self, x: Tensor) -> None:
        move_towards(self.entries, x.detach()[:1].expand(4, 6))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.entries[torch.cdist(x, self.entries).argmin(1)]


class Quantiser(nn.Module):
    """A parent that changes what its child holds."""

    def __init__(self) -> None:
        super().__init__()
        self.projection, self.codebook = nn.Linear(6, 6), Codebook()

    def forward(self, x: Tensor) -> Tensor:
        x = self.projection(x)
        if self.training:
            self.codebook.update(x)
        return self.codebook(x)


class Balanced(nn.Module):
    """A router whose bias evens out its experts, as in DeepSeek-V3."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(6, 6)
        self.register_buffer("e_score_correction_bias", torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        scores = self.gate(x)
        if self.training:
            self.e_score_correction_bias[scores.argmax(1)] -= 0.1
        return x * (scores + self.e_score_correction_bias).softmax(1)


class Channels(nn.Module):
    """A norm over a channel axis, for rows of features."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x[..., None].expand(*x.shape, 4) * torch.arange(1, 5))[..., 0]


def observed() -> nn.Module:
    from torch.ao.quantization import FakeQuantize, MovingAverageMinMaxObserver

    return FakeQuantize(observer=MovingAverageMinMaxObserver)


KINDS: dict[str, Callable[[], nn.Module]] = {
    "batch norm": lambda: nn.BatchNorm1d(6),
    "batch norm that averages all": lambda: nn.BatchNorm1d(6, momentum=None),
    "instance norm": lambda: Channels(nn.InstanceNorm1d(6, track_running_stats=True)),
    "synchronised batch norm": lambda: nn.SyncBatchNorm(6),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Linear(6, 6)),
    "spectral norm by a hook": lambda: hooked_spectral_norm(nn.Linear(6, 6)),
    "an average": Averaging,
    "an average that no checkpoint has": lambda: Averaging(persistent=False),
    "a counter beside dropout": Counting,
    "a codebook": Quantiser,
    "a balanced router": Balanced,
    "an observer": observed,
}


def network(kind: str) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 6), KINDS[kind](), nn.Linear(6, 3))


def tensors(model: nn.Module) -> dict[str, Tensor]:
    both = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in both if "capaft" not in name}


def train(model: Any, steps: int = 3) -> None:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.01)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        model.train()
        model(3 + 2 * torch.randn(8, 6, generator=generator)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("kind", KINDS)
def test_training_changes_no_tensor_of_the_base(kind: str, tmp_path: Any) -> None:
    model, x = network(kind).eval(), torch.randn(4, 6)
    if kind == "an observer":
        model(x)  # Its first range gives its buffers their shapes.
    kept, before = type(model[1]), tensors(model)
    adapter = capaft.attach(model, "lora", rank=2, targets="0,2")
    train(model)
    assert adapter.role_parameters["up"].any()
    assert all(torch.equal(value, before[name]) for name, value in tensors(model).items())
    with torch.no_grad():
        trained = model.eval()(x)
    capaft.save(model, tmp_path / "a.safetensors")
    capaft.detach(model)
    after = tensors(model)
    assert list(after) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    assert type(model[1]) is kept
    capaft.load(model, tmp_path / "a.safetensors")
    with torch.no_grad():
        assert torch.equal(model(x), trained)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
@pytest.mark.parametrize("kind", ["batch norm", "an average"])
def test_copies_hold_their_own_statistics(kind: str) -> None:
    model = network(kind)
    capaft.attach(model, "lora", rank=2, targets="0,2")
    saved = io.BytesIO()
    torch.save(model, saved)
    saved.seek(0)
    for twin in (copy.deepcopy(model), torch.load(saved, weights_only=False)):
        before = tensors(twin)
        train(twin)
        assert all(torch.equal(value, before[name]) for name, value in tensors(twin).items())
        capaft.detach(twin)
        assert twin[1].training
        assert not model[1].training


def test_modes_are_those_last_asked_for() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3))
    capaft.attach(model, "lora", rank=2, targets="0,3")
    capaft.attach(model, "ia3", name="other", targets="0")
    model.train()
    model[1].train()
    model[1].training = True
    assert [module.training for module in model[:4]] == [True, False, True, True]
    capaft.detach(model)
    assert not model[1].training
    capaft.detach(model, "other")
    assert model[1].training
    assert type(model[1]) is nn.BatchNorm1d
    assert len(model) == 4


def test_a_norm_that_is_trained_keeps_its_statistics() -> None:
    model = network("batch norm")
    capaft.attach(model, "lora", rank=2, targets="0", modules_to_save="1")
    weight, before = model[1].weight.detach().clone(), model[1].running_var.clone()
    train(model)
    assert not torch.equal(model[1].weight, weight)
    assert torch.equal(model[1].running_var, before)
    # A parameter of the same module may be moved along a basis, too.
    head = network("batch norm")
    capaft.attach(head, "lora", rank=2, targets="0", head=["1.weight"], head_mode="nola", head_k=4)
    train(head)
    assert torch.equal(head[1].running_var, before)
    assert not torch.equal(head[1].weight, weight)
    capaft.detach(head)
    assert torch.equal(head[1].weight, weight)
    assert head[1].training


def test_other_dropout_stays_on() -> None:
    model = nn.Sequential(nn.Linear(6, 6), Counting(), nn.BatchNorm1d(6), nn.Dropout(0.5))
    capaft.attach(model, "lora", rank=2, targets="0")
    with torch.no_grad():
        output = model.train()(torch.ones(8, 6))
    assert (output == 0).any()
    assert model[1].seen == 0


def test_a_failed_forward_puts_buffers_back() -> None:
    model = network("a codebook")
    capaft.attach(model, "lora", rank=2, targets="0,2")
    entries, before = model[1].codebook.entries, model[1].codebook.entries.clone()
    for x in (torch.ones(2, 6), torch.ones(2, 5), torch.ones(2, 6)):
        try:
            model.train()(x)
        except RuntimeError:
            assert x.shape[1] == 5
        assert model[1].codebook.entries is entries
        assert torch.equal(entries, before)


def test_a_compiled_model_holds_its_statistics() -> None:
    model = network("batch norm").train()
    capaft.attach(model, "lora", rank=2, targets="0,2")
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    x = torch.randn(8, 6)
    assert torch.allclose(compiled(x), model(x))
    assert torch.equal(model[1].running_mean, torch.zeros(6))


def resnet() -> Any:
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=2)
    return ResNetForImageClassification(config)


def ibert() -> Any:
    config = IBertConfig(
        vocab_size=32,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
    )
    return IBertForSequenceClassification(config)


@pytest.mark.parametrize("build", [resnet, ibert])
def test_the_trainer_of_transformers(build: Callable[[], Any], tmp_path: Any) -> None:
    torch.manual_seed(0)
    model = build().eval()
    image = {"pixel_values": torch.randn(3, 32, 32)}
    row = {**(image if build is resnet else {"input_ids": torch.randint(2, 32, (8,))}), "labels": 1}
    batch = {name: torch.as_tensor(value)[None] for name, value in row.items()}
    before = tensors(model)
    capaft.attach(model, "lora", rank=2, targets="conv" if build is resnet else "all-linear")
    arguments = TrainingArguments(
        tmp_path / "t", max_steps=2, per_device_train_batch_size=2, report_to=[], use_cpu=True
    )
    Trainer(model, arguments, train_dataset=[row] * 4).train()
    with torch.no_grad():
        trained = model.eval()(**batch).logits
    capaft.save(model, tmp_path / "a.safetensors")
    capaft.detach(model)
    assert all(torch.equal(value, before[name]) for name, value in tensors(model).items())
    capaft.load(model, tmp_path / "a.safetensors")
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, trained)
