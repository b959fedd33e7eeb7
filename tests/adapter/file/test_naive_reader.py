"""docs/adapter-format.md is enough: a reader written from it alone computes the same updates as capaft."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Any

import naive_reader
import numpy as np
import pytest
import torch
from naive_reader import Site
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPTNeoXConfig,
    GPTNeoXModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)

import capaft
from capaft.adapter.file.encoding import SAVE_DTYPES
from capaft.adapter.file.header import TaskRecord
from capaft.adapter.file.save_load import restore_parameters, save
from capaft.methods.registry import HOSTS as HOST_CLASSES
from capaft.model.origin import Origin

DOCUMENT = (Path(__file__).parents[3] / "docs" / "adapter-format.md").read_text(encoding="utf-8")

COEFFICIENTS: dict[str, dict[str, Any]] = {
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


Case = tuple[PreTrainedModel, str, dict[str, Tensor]]


def bert() -> Case:
    """A model, a target pattern, and the weight `(out, in)` of every site that it matches; three shapes of site."""
    config = BertConfig(
        vocab_size=32, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=40, num_labels=3
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


def gpt2() -> Case:
    """Query and value are parts of one transposed weight."""
    config = GPT2Config(vocab_size=20, n_positions=8, n_embd=32, n_layer=2, n_head=2, num_labels=3, pad_token_id=0)
    model = GPT2ForSequenceClassification(config)
    weights = {}
    for number, layer in enumerate(model.transformer.h):
        weights[f"h.{number}.attn.c_attn#q"] = layer.attn.c_attn.weight.T[:32]
        weights[f"h.{number}.attn.c_attn#v"] = layer.attn.c_attn.weight.T[64:]
    return model, "qv", weights


def neox() -> Case:
    """The query, key and value of each head are adjacent in one weight."""
    config = GPTNeoXConfig(
        vocab_size=20, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=40
    )
    model = GPTNeoXModel(config)
    heads = model.layers[0].attention.query_key_value.weight.view(4, 3, 8, 32)
    rows = {part: heads[:, number].reshape(32, 32) for number, part in enumerate("qkv")}
    return model, "kv", {f"layers.0.attention.query_key_value#{part}": rows[part] for part in "kv"}


def others() -> Case:
    """Linear layers beside embeddings of the same shape but another fan-in, and a kernel."""
    model = bert()[0]
    model.bert.encoder.conv = nn.Conv2d(4, 6, (2, 3))
    embeddings = model.bert.embeddings
    weights = {
        f"encoder.layer.{number}.attention.self.query": layer.attention.self.query.weight
        for number, layer in enumerate(model.bert.encoder.layer)
    }
    weights |= {
        f"embeddings.{name}": getattr(embeddings, name).weight.T
        for name in ("word_embeddings", "position_embeddings", "token_type_embeddings")
    }
    weights["encoder.conv"] = model.bert.encoder.conv.weight.flatten(1)
    return model, "query,embeddings,conv", weights


MODELS = {"bert": bert, "gpt2": gpt2}


def fill(model: nn.Module, adapter: capaft.Adapter) -> None:
    draw = np.random.default_rng(0)
    with torch.no_grad():
        for parameter in adapter.trained(model).values():
            parameter.copy_(torch.from_numpy(draw.standard_normal(tuple(parameter.shape))))


def sites_of(weights: dict[str, Tensor], ends: str = "nothing") -> list[Site]:
    def mark(path: str) -> str:
        return "embedding" if "_embeddings" in path else "input" if re.search(ends, path) else ""

    return [Site(path, *weight.shape, mark=mark(path)) for path, weight in weights.items()]


def compare(adapter: capaft.Adapter, path: Path, sites: list[Site], weights: dict[str, Tensor]) -> None:
    """Both readers compute the same factors, and the same weights if the host changes weights."""
    header, parameters = naive_reader.read(path.read_bytes())
    naive_reader.check_sites(header, sites)
    naive_factors = naive_reader.factors(header, parameters)
    host, by_path = adapter.plan.stack.host, {site.path: site for site in naive_reader.sites_of(header)}
    assert host is not None
    assert [site.path for site in adapter.plan.sites] == sorted(naive_factors)
    for site, factors in adapter.factors_of_sites():
        naive = naive_factors[site.path]
        assert list(naive) == [factor.name for factor in host.factors(site)]
        for factor, slow in zip(factors, naive.values(), strict=True):
            np.testing.assert_allclose(factor.numpy(), slow, rtol=1e-5, atol=3e-6 * abs(slow).max())
        if host.unmergeable:
            continue
        weight = weights[site.path].detach().double()
        real, _ = host.merged(site, weight, None, tuple(factor.double() for factor in factors))
        slow = naive_reader.merged(header, weight.numpy(), by_path[site.path], naive)
        np.testing.assert_allclose(real.numpy(), slow, rtol=1e-5, atol=3e-6 * abs(slow).max())


@pytest.mark.parametrize("architecture", MODELS)
@pytest.mark.parametrize(("coefficients", "copies"), list(product(COEFFICIENTS, COPIES)))
def test_both_readers_find_the_same_updates(architecture: str, coefficients: str, copies: str, tmp_path: Path) -> None:
    model, targets, weights = MODELS[architecture]()
    base, path = copy.deepcopy(model), tmp_path / "adapter.safetensors"
    method = "+".join(["lora", *["nola"][: coefficients != "dense"], *["capaboost"][: copies != "plain"]])
    head = [name for name, _ in model.named_parameters() if name.startswith(("classifier", "score"))]
    options = COEFFICIENTS[coefficients] | COPIES[copies] | {"targets": targets, "head": head, "seed": 2**64 - 1}
    fill(model, capaft.attach(model, method, rank=3, alpha=5, **options))
    for dtype in SAVE_DTYPES:
        save(model, path, dtype=dtype)
        header, parameters = naive_reader.read(path.read_bytes())
        naive_reader.check_base(header, {path: weight.detach().numpy() for path, weight in weights.items()})
        adapter = capaft.load(base, path)
        compare(adapter, path, sites_of(weights), weights)
        for name, parameter in adapter.trained(base).items():
            size = parameter.numel()
            assert parameters[name][:size].tolist() == parameter.flatten().tolist()
            assert len(parameters[name]) == size + (size % 2 if dtype == "int4" else 0)
        capaft.detach(base)


def roberta() -> RobertaForSequenceClassification:
    """A head of two layers, the first of them large."""
    config = RobertaConfig(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=12,
        num_labels=3,
    )
    return RobertaForSequenceClassification(config)


@pytest.mark.parametrize("dtype", SAVE_DTYPES)
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("head", {}),
        ("lora", {"rank": 2}),
        ("nola", {"rank": 2, "k": (9, 5), "basis": "uniform"}),
        ("houlsby+nola+capaboost", {"bottleneck": 2, "k": 5, "basis": "group", "scope": "model"}),
    ],
)
def test_both_readers_find_the_same_head(method: str, options: dict[str, Any], dtype: str, tmp_path: Path) -> None:
    model, path = roberta(), tmp_path / "adapter.safetensors"
    names = [name for name, _ in model.named_parameters() if name.startswith("classifier")]
    before = {name: model.get_parameter(name).detach().clone() for name in names}
    adapter = capaft.attach(model, method, head=names, head_mode="nola", head_k=5, seed=11, **options)
    fill(model, adapter)
    save(model, path, dtype=dtype)
    restore_parameters(model, path)
    header, parameters = naive_reader.read(path.read_bytes())
    moved = ["classifier.dense.bias", "classifier.dense.weight", "classifier.out_proj.weight"]
    assert list(header["head"]["parameters"]) == moved
    naive_reader.check_head(header, {name: before[name].numpy().reshape(len(before[name]), -1) for name in moved})
    with pytest.raises(naive_reader.Damaged):
        naive_reader.check_head(header, {name: np.ones(header["head"]["parameters"][name]) for name in moved})
    naive_reader.factors(header, parameters)
    updates = naive_reader.head(header, parameters)
    assert list(updates) == moved
    for name, change in updates.items():
        expected = before[name].double().numpy() + change.reshape(tuple(before[name].shape))
        layer = model.get_submodule(name.rpartition(".")[0])
        real = getattr(layer, name.rpartition(".")[2]).detach().numpy()
        np.testing.assert_allclose(real, expected, rtol=1e-5, atol=3e-6 * abs(expected).max())
    direct = parameters["head:classifier.out_proj.bias"][:3]
    assert direct.tolist() == model.classifier.out_proj.bias.tolist()


def test_the_naive_reader_checks_the_head(tmp_path: Path) -> None:
    model, path = roberta(), tmp_path / "adapter.safetensors"
    capaft.attach(model, "lora", rank=2, head=["classifier.dense.weight"], head_mode="nola", head_k=6)
    save(model, path)
    header, parameters = naive_reader.read(path.read_bytes())
    naive_reader.factors(header, parameters)
    for change in ({"k": 70}, {"parameters": {"classifier.dense.weight": [16, 17]}}, {"k": 0}):
        other = copy.deepcopy(header)
        other["head"] |= change
        with pytest.raises(naive_reader.Damaged):
            naive_reader.factors(other, parameters)
    header["head"]["k"] = 5
    with pytest.raises(naive_reader.Damaged):
        naive_reader.head(header, parameters)


def test_a_frozen_head_has_no_numbers(tmp_path: Path) -> None:
    model, path = roberta(), tmp_path / "adapter.safetensors"
    weights = {n: p.detach().reshape(len(p), -1).numpy() for n, p in model.named_parameters() if n.startswith("class")}
    capaft.attach(model, "lora", rank=2, head=list(weights), head_mode="frozen")
    save(model, path)
    header, parameters = naive_reader.read(path.read_bytes())
    naive_reader.check_head(header, weights)
    assert naive_reader.head(header, parameters) == {}
    assert set(parameters) == {"down", "up"}


HOSTS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 3, "rslora": True, "rank_pattern": ("self.query=5", "re:1.*dense$=2")},
    "dora": {"rank": 3, "alpha": 5},
    "vera": {"rank": 30},
    "ia3": {},
    "bitfit": {"targets": ""},
    "houlsby": {"bottleneck": 4, "targets": ""},
    "pfeiffer": {"bottleneck": 4, "bias": False, "targets": ""},
    "parallel": {"bottleneck": 4, "scaling": 2, "targets": ""},
    "prefix": {"prefix_length": 3, "targets": ""},
}
# With the first, vectors of 32 entries are trained directly, and those of 40 are not.
SCOPED = {"dense": {}} | {
    f"{basis}-{scope}": {"k": k, "basis": basis, "scope": scope}
    for scope in ("site", "model")
    for basis, k in (("hadamard", (7, 36)), ("uniform", (7, 3)), ("group", (7, 4)))
}
RESCALED = {"plain": {}} | {
    masks: {"copies": 2, "density": 0.7, "masks": masks, "mask_rescale": "variance"}
    for masks in ("random", "partition")
}


@pytest.mark.parametrize(
    ("host", "coefficients", "copies"),
    [case for case in product(HOSTS, SCOPED, RESCALED) if case[2] == "plain" or not HOST_CLASSES[case[0]].narrow],
)
def test_both_readers_agree_on_every_host(host: str, coefficients: str, copies: str, tmp_path: Path) -> None:
    model, targets, weights = bert()
    path = tmp_path / "adapter.safetensors"
    method = "+".join([host, *["nola"][: coefficients != "dense"], *["capaboost"][: copies != "plain"]])
    options = {"targets": targets, "seed": 3} | HOSTS[host] | SCOPED[coefficients] | RESCALED[copies]
    adapter = capaft.attach(model, method, **options)
    fill(model, adapter)
    save(model, path)
    sites = sites_of(weights, r"\d\.output\.dense$" if host == "ia3" else "nothing")
    if host == "bitfit":
        biases = {name: bias for name, bias in model.bert.named_parameters() if name.endswith(".bias")}
        weights = {name.removesuffix(".bias"): bias[:, None] for name, bias in biases.items()}
        sites = sites_of(weights)
    elif not options["targets"]:
        sites = [Site(site.path, site.out_features, site.in_features) for site in adapter.plan.sites]
    compare(adapter, path, sites, weights)


@pytest.mark.parametrize("model", [others, neox])
@pytest.mark.parametrize("host", ["lora", "dora", "vera"])
def test_whatever_the_layout_of_a_weight_it_is_a_matrix(host: str, model: Callable[[], Case], tmp_path: Path) -> None:
    base, targets, weights = model()
    path = tmp_path / "adapter.safetensors"
    adapter = capaft.attach(base, f"{host}+nola", rank=2, k=(7, 5), targets=targets)
    fill(base, adapter)
    save(base, path)
    header, _ = naive_reader.read(path.read_bytes())
    naive_reader.check_base(header, {path: weight.detach().numpy() for path, weight in weights.items()})
    compare(adapter, path, sites_of(weights), weights)


@pytest.mark.parametrize("host", ["head", "houlsby", "prefix"])
def test_without_weights_for_sites_the_linear_layers_tell_the_base(host: str, tmp_path: Path) -> None:
    model, path = bert()[0], tmp_path / "adapter.safetensors"
    modules = model.bert.named_modules()
    linear = {name: module.weight.detach().numpy() for name, module in modules if is_linear(module)}
    capaft.attach(model, host)
    save(model, path)
    naive_reader.check_base(naive_reader.read(path.read_bytes())[0], linear)


@pytest.mark.parametrize("method", ["lora", "lora+nola", "lora+nola+capaboost"])
def test_updates_come_from_the_file_alone(method: str, tmp_path: Path) -> None:
    """No model, no regular expression of its ranks, no library that names its modules."""
    model, targets, _ = others()
    path = tmp_path / "adapter.safetensors"
    options = {"k": (7, 5)} if "nola" in method else {}
    adapter = capaft.attach(model, method, rank=2, rank_pattern=("re:query$=3",), targets=targets, seed=5, **options)
    fill(model, adapter)
    save(model, path)
    header, parameters = naive_reader.read(path.read_bytes())
    updates = {
        site.path: naive_reader.update(header, site, parts)
        for site, parts in zip(
            naive_reader.sites_of(header), naive_reader.factors(header, parameters).values(), strict=True
        )
    }
    host = adapter.plan.stack.host
    assert host is not None
    for site, factors in adapter.factors_of_sites():
        product = host.product(site, tuple(factor.double() for factor in factors))
        assert product is not None
        slow = updates.pop(site.path)
        np.testing.assert_allclose((product[0] @ product[1]).numpy(), slow, rtol=1e-5, atol=3e-6 * abs(slow).max())
    assert updates == {}


def is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear)


# The worked example


class OneLayer(nn.Module):
    """The whole base model of the example."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(4, 3, bias=False)
        with torch.no_grad():
            self.query.weight.copy_((torch.arange(12) / 8 - 0.75).view(3, 4))


SITES = [Site("query", 3, 4, 2)]
WEIGHT = np.arange(12).reshape(3, 4) / 8 - 0.75


@pytest.fixture
def example(tmp_path: Path) -> bytes:
    model = OneLayer()
    adapter = capaft.attach(model, "lora+nola+capaboost", rank=2, alpha=4, k=(3, 2), copies=2, density=0.7, seed=7)
    with torch.no_grad():
        adapter.role_parameters["down"].copy_(torch.tensor([[0.5, -1.0, 0.25]]))
        adapter.role_parameters["up"].copy_(torch.tensor([[1.0, -0.5]]))
    task = TaskRecord("text-classification", ("bad", "très bon"), 128, "accuracy", {"problem": "single"})
    path = tmp_path / "adapter.safetensors"
    save(model, path, base=Origin("one-layer"), task=task)
    return path.read_bytes()


def shown(values: Any) -> str:
    """Numbers as the document prints them."""
    return np.array2string(np.asarray(values), precision=6, floatmode="fixed", separator=", ", max_line_width=120)


def worked_example(data: bytes) -> list[str]:
    """Every figure of the document's example, as printed there."""
    header, parameters = naive_reader.read(data)
    length = int.from_bytes(data[:8], "little")
    outer = data[8 : 8 + length].decode()
    text = json.loads(outer)["__metadata__"]["capaft"]
    lines = [f"{len(data)} bytes", sha256(data).hexdigest(), data[:8].hex(" "), f"H = {length}", text]
    entries = {name: entry for name, entry in json.loads(outer).items() if name != "__metadata__"}
    body = data[8 + length :]
    stored = {name: body[slice(*entry["data_offsets"])] for name, entry in entries.items()}
    lines += [naive_reader.hashed_tensor(name, entries[name], stored[name]).hex(" ") for name in sorted(stored)]
    digests = json.loads(text)["digest"]
    lines += [f'"digest":{{"streams":"{digests["streams"][:4]}', f'"digest":{{"header":"{digests["header"][:4]}']
    lines += [
        outer[outer.index('"down":') :].rstrip(),
        f"{len(outer) - len(outer.rstrip())} spaces",
        body.hex(" "),
    ]
    for factor, start, n, k in (("down", "uniform", 8, 3), ("up", 0.0, 6, 2)):
        streams = (7, "query", factor)
        for purpose, count in sorted(naive_reader.streams_read(header["method"], start, n).items()):
            key = naive_reader.key_of(*streams, purpose)
            first, last = naive_reader.word(key, 0), naive_reader.word(key, count - 1)
            cells = [factor, purpose, f"{key[0]:016x}", f"{key[1]:016x}", str(count), f"{first:016x}", f"{last:016x}"]
            lines.append("| " + " | ".join(cells) + " |")
        columns = naive_reader.order(naive_reader.key_of(*streams, "hadamard.columns"), 4)
        top = naive_reader.bits(naive_reader.key_of(*streams, "hadamard.top"), k)
        lines.append(f"p = {columns}, t = {top}")
        lines.append(f"e = {naive_reader.signs(naive_reader.key_of(*streams, 'hadamard.signs'), n).tolist()}")
        basis = naive_reader.basis("hadamard", streams, n, k)
        initial = naive_reader.theta0(start, streams, n, 4)
        drawn = naive_reader.masks(header["method"], streams, n)
        lines += [f"G sqrt(3 k) = {(basis * np.sqrt(3 * k)).round().astype(int).tolist()}"]
        lines += [f"theta0 = {shown(initial)}"] if factor == "down" else []
        lines += [f"theta0 + G c = {shown(initial + basis @ parameters[factor])}"]
        lines += [f"kept = {[np.flatnonzero(row).tolist() for row in drawn]}"]
    parts = naive_reader.factors(header, parameters)["query"]
    update = naive_reader.merged(header, WEIGHT, SITES[0], parts) - WEIGHT
    return lines + [f"dW[{i}] = {shown(row)}" for i, row in enumerate(update)]


def test_the_worked_example_is_real(example: bytes) -> None:
    missing = [line for line in worked_example(example) if line not in DOCUMENT]
    assert missing == []


def test_the_worked_example_fits_its_base_model(example: bytes) -> None:
    header, _ = naive_reader.read(example)
    naive_reader.check_base(header, {"query": WEIGHT})
    with pytest.raises(naive_reader.Damaged):
        naive_reader.check_base(header, {"query": -WEIGHT})


# The naive reader's checks work


def test_no_byte_can_be_changed(example: bytes) -> None:
    for at in range(len(example)):
        with pytest.raises((naive_reader.Damaged, KeyError, TypeError)):
            naive_reader.read(example[:at] + bytes([example[at] ^ 1]) + example[at + 1 :])
        with pytest.raises(naive_reader.Damaged):
            naive_reader.read(example[:at])


@pytest.mark.parametrize("sites", [[], [Site("key", 3, 4)], [Site("query", 4, 3)], [*SITES, Site("value", 3, 4)]])
def test_no_other_sites_will_do(example: bytes, sites: list[Site]) -> None:
    with pytest.raises(naive_reader.Damaged):
        naive_reader.check_sites(naive_reader.read(example)[0], sites)


@pytest.mark.parametrize(("entry", "value"), [("seed", 8), ("k", [4, 2]), ("copies", 3), ("masks", "partition")])
def test_no_other_streams_will_do(example: bytes, entry: str, value: Any) -> None:
    header, parameters = naive_reader.read(example)
    (header if entry == "seed" else header["method"])[entry] = value
    with pytest.raises(naive_reader.Damaged):
        naive_reader.factors(header, parameters)
