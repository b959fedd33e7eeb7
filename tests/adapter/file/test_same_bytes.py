"""The same adapter is the same file, which every later version reads; and its header is small."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import naive_reader
import pytest
import torch
from tiny_files import HEAD, TASK, adapted, equal, trained_values
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel

import capaft
from capaft.adapter.file.adapter_file import read
from capaft.adapter.file.encoding import SaveDtype, decode_tensor, encode_tensor
from capaft.adapter.file.save_load import load, save
from capaft.adapter.file.sizes import header_sizes
from capaft.factors import rng
from capaft.model.origin import Origin

FILES = Path(__file__).parent / "golden"
"""Files of format 1, which every later version reads."""
GOLDEN: dict[str, tuple[dict[str, Any], SaveDtype]] = {
    "hadamard": ({"method": "nola", "k": 16}, "float32"),
    "uniform": ({"method": "lora+nola+capaboost", "k": (7, 5), "basis": "uniform"}, "bfloat16"),
    "group": ({"method": "nola", "k": 8, "basis": "group"}, "float16"),
    "shared": ({"method": "dora+nola", "k": 8, "basis": "group", "scope": "model"}, "float32"),
    "random": ({"method": "capaboost", "copies": 3, "density": 0.29}, "int4"),
    "partition": ({"method": "capaboost", "copies": 2, "masks": "partition", "targets": "query,key,value"}, "int8"),
    "vera": ({"method": "vera+capaboost", "copies": 2}, "float32"),
    "head": ({"method": "lora", "head_mode": "nola", "head_k": 9}, "float32"),
}


def base() -> nn.ModuleDict:
    """A model whose every value comes from a seeded stream, so that it never changes."""
    widths = {"query": (32, 32), "key": (32, 32), "value": (32, 40), "classifier": (32, 3)}
    model = nn.ModuleDict({name: nn.Linear(*width) for name, width in widths.items()})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(_stream("weights", name, parameter))
    return model


def golden(method: str, **options: Any) -> nn.ModuleDict:
    """The model with an adapter, its parameters from seeded streams as well."""
    model = base()
    scale = {} if method.startswith("vera") else {"alpha": 8}
    with torch.no_grad():
        adapter = capaft.attach(model, method, **{"rank": 4, "seed": 3, "head": HEAD} | scale | options)
        for name, parameter in adapter.trained(model).items():
            parameter.copy_(_stream("numbers", name, parameter))
    return model


def _stream(what: str, name: str, like: Tensor) -> Tensor:
    return torch.from_numpy(rng.uniform(rng.fold_in(0, "golden", name, what), like.numel())).view_as(like)


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_file(name: str, path: Path) -> None:
    options, dtype = GOLDEN[name]
    save(golden(**options), path, base=Origin("tiny"), task=TASK, dtype=dtype)
    assert path.read_bytes() == (FILES / f"{name}.safetensors").read_bytes()


@pytest.mark.parametrize("name", GOLDEN)
def test_a_golden_file_loads(name: str) -> None:
    (options, dtype), file = GOLDEN[name], FILES / f"{name}.safetensors"
    model = base()
    adapter = load(model, file)
    assert adapter.task == TASK
    written = trained_values(golden(**options))
    assert equal(
        trained_values(model),
        {
            key: decode_tensor(key, encode_tensor(key, values, dtype), tuple(values.shape), dtype)
            for key, values in written.items()
        },
    )
    naive_factors = naive_reader.factors(*naive_reader.read(file.read_bytes()))
    for site, factors in adapter.factors_of_sites():
        for factor, naive in zip(factors, naive_factors[site.path].values(), strict=True):
            torch.testing.assert_close(factor.detach().double(), torch.from_numpy(naive), rtol=0, atol=1e-5)


TRAINING = """
import sys
import torch
from torch import nn
import capaft
from capaft.adapter.file.save_load import save
from capaft.model.origin import Origin

torch.manual_seed(0)
model = nn.ModuleDict({name: nn.Linear(40, 40) for name in ("query", "value", "other")})
capaft.attach(model, "lora+nola+capaboost", rank=3, k=9)
for _ in range(5):
    model["value"](model["query"](torch.randn(8, 40)).relu()).square().mean().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.sub_(0.1 * parameter.grad)
save(model, sys.argv[1], base=Origin("tiny"))
"""


def test_two_fresh_processes_write_the_same_bytes(tmp_path: Path) -> None:
    paths = [tmp_path / "one", tmp_path / "two"]
    running = [
        subprocess.Popen([sys.executable, "-c", TRAINING, str(path)], env=os.environ | {"PYTHONHASHSEED": seed})
        for seed, path in zip("12", paths, strict=True)
    ]
    assert [process.wait() for process in running] == [0, 0]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_whole_number_and_its_float_are_one_file(path: Path) -> None:
    contents = []
    for alpha in (16, 16.0):
        save(adapted(alpha=alpha), path)
        contents.append(path.read_bytes())
    assert contents[0] == contents[1]


@pytest.mark.parametrize("targets", ["qv", "all-linear"])
def test_the_header_stays_small_however_many_sites(targets: str, path: Path) -> None:
    """The layers of Llama-70B, in proportion; every byte of the file counts but the labels and the parameters."""
    config = LlamaConfig(
        hidden_size=8,
        intermediate_size=28,
        num_hidden_layers=80,
        num_attention_heads=4,
        num_key_value_heads=1,
        vocab_size=4,
    )
    model = LlamaModel(config)
    adapter = capaft.attach(model, "lora+nola+capaboost", rank=1, k=2, targets=targets)
    assert len(adapter.plan.sites) == {"qv": 160, "all-linear": 560}[targets]
    task = replace(TASK, options={})
    save(model, path, base=Origin("some-organisation/some-model-with-a-long-name", "0" * 40), task=task)
    parts = header_sizes(read(path))
    assert sum(parts.values()) - parts["labels"] < 2048
