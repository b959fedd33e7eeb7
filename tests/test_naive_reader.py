"""docs/adapter-format.md is enough: a reader written from it alone finds the updates that capaft finds."""

from __future__ import annotations

import copy
import json
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Any

import naive_reader
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    PreTrainedModel,
)

import capaft
from capaft.adapter_file import Base, Task, save
from capaft.storage import SAVE_DTYPES

DOCUMENT = (Path(__file__).parents[1] / "docs" / "adapter-format.md").read_text(encoding="utf-8")

NUMBERS: dict[str, dict[str, Any]] = {
    "dense": {},
    "uniform": {"k": (7, 5), "basis": "uniform"},
    "hadamard": {"k": (7, 5), "basis": "hadamard"},
    "group": {"k": (7, 5), "basis": "group"},
}
COPIES: dict[str, dict[str, Any]] = {
    "plain": {},
    "d=2": {"copies": 2, "density": 0.29},
    "d=3": {"copies": 3, "density": 0.5},
    "partition": {"copies": 3, "masks": "partition"},
}


def bert() -> tuple[PreTrainedModel, str, dict[str, Tensor]]:
    """A model, a target pattern, and the weight `(out, in)` of every site that it should find; three shapes of site."""
    config = BertConfig(
        vocab_size=20, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=40, num_labels=3
    )
    model = BertForSequenceClassification(config)
    weights = {}
    for number, layer in enumerate(model.bert.encoder.layer):
        at = f"encoder.layer.{number}"
        weights[f"{at}.attention.self.query"] = layer.attention.self.query.weight
        weights[f"{at}.attention.self.value"] = layer.attention.self.value.weight
    weights["encoder.layer.1.intermediate.dense"] = layer.intermediate.dense.weight
    weights["encoder.layer.1.output.dense"] = layer.output.dense.weight
    return model, r"re:(self\.(query|value)|1\.(intermediate|output)\.dense)$", weights


def gpt2() -> tuple[PreTrainedModel, str, dict[str, Tensor]]:
    """Query and value lie side by side in one transposed weight."""
    config = GPT2Config(vocab_size=20, n_positions=8, n_embd=32, n_layer=2, n_head=2, num_labels=3, pad_token_id=0)
    model = GPT2ForSequenceClassification(config)
    weights = {}
    for number, layer in enumerate(model.transformer.h):
        weights[f"h.{number}.attn.c_attn#q"] = layer.attn.c_attn.weight.T[:32]
        weights[f"h.{number}.attn.c_attn#v"] = layer.attn.c_attn.weight.T[64:]
    return model, "qv", weights


MODELS = {"bert": bert, "gpt2": gpt2}


def fill(model: nn.Module, adapter: capaft.attach.Adapter) -> None:
    draw = np.random.default_rng(0)
    with torch.no_grad():
        for parameter in adapter.trained(model).values():
            parameter.copy_(torch.from_numpy(draw.standard_normal(tuple(parameter.shape))))


@pytest.mark.parametrize("architecture", MODELS)
@pytest.mark.parametrize(("numbers", "copies"), list(product(NUMBERS, COPIES)))
def test_both_readers_find_the_same_updates(architecture: str, numbers: str, copies: str, tmp_path: Path) -> None:
    model, targets, weights = MODELS[architecture]()
    base, path = copy.deepcopy(model), tmp_path / "adapter.safetensors"
    method = "+".join(["lora", *["nola"][: numbers != "dense"], *["capaboost"][: copies != "plain"]])
    head = [name for name, _ in model.named_parameters() if name.startswith(("classifier", "score"))]
    options = NUMBERS[numbers] | COPIES[copies] | {"targets": targets, "head": head, "seed": 2**64 - 1}
    fill(model, capaft.attach(model, method, rank=3, alpha=5, **options))
    sites = [(path, *weight.shape) for path, weight in weights.items()]
    for dtype in SAVE_DTYPES:
        save(model, path, dtype=dtype)
        header, found = naive_reader.read(path.read_bytes())
        naive_reader.check_base(header, {path: weight.detach().numpy() for path, weight in weights.items()})
        updates = naive_reader.updates(header, found, sites)
        adapter = capaft.load(base, path)
        assert [site.path for site, _, _ in adapter.products()] == sorted(updates)
        for site, left, right in adapter.products():
            naive = updates[site.path]
            np.testing.assert_allclose((left @ right).numpy(), naive, rtol=1e-5, atol=3e-6 * abs(naive).max())
        for name, parameter in adapter.trained(base).items():
            size = parameter.numel()
            assert found[name][:size].tolist() == parameter.flatten().tolist()
            assert len(found[name]) == size + (size % 2 if dtype == "int4" else 0)
        capaft.detach(base)


# The worked example


class OneLayer(nn.Module):
    """The whole base model of the example."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(4, 3, bias=False)
        with torch.no_grad():
            self.query.weight.copy_((torch.arange(12) / 8 - 0.75).view(3, 4))


SITES = [("query", 3, 4)]


@pytest.fixture
def example(tmp_path: Path) -> bytes:
    model = OneLayer()
    adapter = capaft.attach(model, "lora+nola+capaboost", rank=2, alpha=4, k=(3, 2), copies=2, density=0.7, seed=7)
    with torch.no_grad():
        adapter.numbers["down"].copy_(torch.tensor([[0.5, -1.0, 0.25]]))
        adapter.numbers["up"].copy_(torch.tensor([[1.0, -0.5]]))
    task = Task("text-classification", ("bad", "très bon"), 128, "accuracy")
    path = tmp_path / "adapter.safetensors"
    save(model, path, base=Base("one-layer"), task=task)
    return path.read_bytes()


def shown(values: Any) -> str:
    """Numbers as the document prints them."""
    return np.array2string(np.asarray(values), precision=6, floatmode="fixed", separator=", ", max_line_width=120)


def worked_example(data: bytes) -> list[str]:
    """Every figure of the document's example, as it is printed there."""
    header, numbers = naive_reader.read(data)
    length = int.from_bytes(data[:8], "little")
    outer = data[8 : 8 + length].decode()
    text = json.loads(outer)["__metadata__"]["capaft"]
    lines = [f"{len(data)} bytes", sha256(data).hexdigest(), data[:8].hex(" "), f"H = {length}", text]
    lines += [
        outer[outer.index('"down":') :].rstrip(),
        f"{len(outer) - len(outer.rstrip())} spaces",
        data[8 + length :].hex(" "),
    ]
    for factor, n, k in (("down", 8, 3), ("up", 6, 2)):
        streams = (7, "query", factor)
        for purpose, count in sorted(naive_reader.streams_read(header["method"], factor, n).items()):
            key = naive_reader.key_of(*streams, purpose)
            first, last = naive_reader.word(key, 0), naive_reader.word(key, count - 1)
            cells = [factor, purpose, f"{key[0]:016x}", f"{key[1]:016x}", str(count), f"{first:016x}", f"{last:016x}"]
            lines.append("| " + " | ".join(cells) + " |")
        columns = naive_reader.order(naive_reader.key_of(*streams, "hadamard.columns"), 4)
        top = naive_reader.bits(naive_reader.key_of(*streams, "hadamard.top"), k)
        lines.append(f"p = {columns}, t = {top}")
        lines.append(f"e = {naive_reader.signs(naive_reader.key_of(*streams, 'hadamard.signs'), n).tolist()}")
        basis = naive_reader.basis("hadamard", streams, n, k)
        initial = naive_reader.theta0(factor, streams, n, 4)
        drawn = naive_reader.masks(header["method"], streams, n)
        lines += [f"G sqrt(3 k) = {(basis * np.sqrt(3 * k)).round().astype(int).tolist()}"]
        lines += [f"theta0 = {shown(initial)}"] if factor == "down" else []
        lines += [f"theta0 + G c = {shown(initial + basis @ numbers[factor])}"]
        lines += [f"kept = {[np.flatnonzero(row).tolist() for row in drawn]}"]
    update = naive_reader.updates(header, numbers, SITES)["query"]
    return lines + [f"dW[{i}] = {shown(row)}" for i, row in enumerate(update)]


def test_the_worked_example_is_real(example: bytes) -> None:
    missing = [line for line in worked_example(example) if line not in DOCUMENT]
    assert missing == []


def test_the_worked_example_fits_its_base_model(example: bytes) -> None:
    header, _ = naive_reader.read(example)
    weight = np.arange(12).reshape(3, 4) / 8 - 0.75
    naive_reader.check_base(header, {"query": weight})
    with pytest.raises(naive_reader.Damaged):
        naive_reader.check_base(header, {"query": -weight})


# What the naive reader refuses: its checks are real


def test_no_byte_can_be_changed(example: bytes) -> None:
    for at in range(len(example)):
        with pytest.raises((naive_reader.Damaged, KeyError, TypeError)):
            naive_reader.read(example[:at] + bytes([example[at] ^ 1]) + example[at + 1 :])
        with pytest.raises(naive_reader.Damaged):
            naive_reader.read(example[:at])


@pytest.mark.parametrize("sites", [[], [("key", 3, 4)], [("query", 4, 3)], [*SITES, ("value", 3, 4)]])
def test_no_other_sites_will_do(example: bytes, sites: list[tuple[str, int, int]]) -> None:
    with pytest.raises(naive_reader.Damaged):
        naive_reader.updates(*naive_reader.read(example), sites)


@pytest.mark.parametrize(("entry", "value"), [("seed", 8), ("k", [4, 2]), ("copies", 3), ("masks", "partition")])
def test_no_other_streams_will_do(example: bytes, entry: str, value: Any) -> None:
    header, numbers = naive_reader.read(example)
    (header if entry == "seed" else header["method"])[entry] = value
    with pytest.raises(naive_reader.Damaged):
        naive_reader.updates(header, numbers, SITES)
