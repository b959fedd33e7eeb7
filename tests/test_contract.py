"""The laws that every adapter keeps, over every host, basis, transform, layout, dtype and device at once.

A new host or basis joins by being registered; all that it needs here is its formula in `naive.py`.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import OrderedDict
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import naive
import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import capaft
from capaft.attach import Adapter, attach_plan
from capaft.basis import BASES
from capaft.budget import trained_numbers
from capaft.methods import HOSTS
from capaft.methods.stack import parse
from capaft.plan import plan

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
PARAMETERISATIONS = ["dense", *BASES]
TRANSFORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "d=2": {"copies": 2, "density": 0.5},
    "d=3": {"copies": 3, "density": 0.4},
    "partition": {"copies": 2, "masks": "partition"},
}
# A model, the targets of the adapter under test, and those of another adapter beside it.
LAYOUTS = {
    "linear": (tiny.bert, "query,value,layer.1.intermediate.dense,layer.1.output.dense", "value,key"),
    "conv1d": (tiny.gpt2, "qv", "h.1.attn.c_attn,c_fc,mlp.c_proj"),
}
# How far a model in that precision may stray from one in float64, relative to the norm of its logits.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}


@dataclass(frozen=True)
class Cell:
    """One cell of the table, with all it takes to make its adapter."""

    host: str
    parameterisation: str
    transform: str
    layout: str
    dtype: torch.dtype = torch.float32
    device: str = "cpu"

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return "-".join((self.host, self.parameterisation, self.transform, self.layout, dtype, self.device))

    @property
    def method(self) -> str:
        parts = [self.host, *(["nola"] if self.parameterisation != "dense" else [])]
        return "+".join([*parts, *(["capaboost"] if self.transform != "plain" else [])])

    @property
    def options(self) -> dict[str, Any]:
        basis = {} if self.parameterisation == "dense" else {"basis": self.parameterisation}
        return {"rank": 4, "alpha": 6.0, "k": (12, 8), **basis, **TRANSFORMS[self.transform]}

    @property
    def targets(self) -> str:
        return LAYOUTS[self.layout][1]

    @property
    def elsewhere(self) -> dict[str, Any]:
        """Options that make another adapter."""
        return {"targets": LAYOUTS[self.layout][2], "seed": 8}

    def base(self) -> Any:
        return LAYOUTS[self.layout][0]().to(self.device, self.dtype)

    def attach(self, model: nn.Module, **options: Any) -> Adapter:
        return capaft.attach(model, self.method, **{"targets": self.targets, "seed": 5} | self.options | options)

    def adapted(self, **options: Any) -> tuple[Any, Adapter]:
        """A model with an adapter whose numbers are as training might leave them."""
        model = self.base()
        return model, tiny.scramble(self.attach(model, **options))


TABLE = [Cell(*values) for values in product(HOSTS, PARAMETERISATIONS, TRANSFORMS, LAYOUTS, TOLERANCE, DEVICES)]
every_cell = pytest.mark.parametrize("cell", TABLE, ids=str)
# Where the dtype of the base plays no part.
float32_cells = pytest.mark.parametrize("cell", [c for c in TABLE if c.dtype == torch.float32], ids=str)


def distance(found: Tensor, wanted: Tensor) -> float:
    """Of the norm of what is wanted."""
    found, wanted = (each.detach().cpu().double() for each in (found, wanted))
    return float((found - wanted).norm() / wanted.norm())


def state(model: nn.Module) -> dict[str, Any]:
    """All that attaching may touch: tensors, flags, modules and hooks."""
    found: dict[str, Any] = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        found[name] = (tensor.dtype, tensor.requires_grad, tensor.detach().cpu().view(torch.uint8).numpy().tobytes())
    for name, module in model.named_modules():
        hooks = {key: dict(value) for key, value in vars(module).items() if isinstance(value, OrderedDict)}
        found["module " + name] = (type(module), module.training, list(vars(module)), hooks)
    return found


def numbers(adapter: Adapter) -> list[Tensor]:
    return [each.detach().cpu().clone() for each in adapter.numbers.values()]


def factors(adapter: Adapter) -> list[Tensor]:
    """All that comes of an adapter's numbers and streams, without those."""
    with torch.no_grad():
        return [factor.cpu() for site in adapter.expand() for factor in site]


def all_equal(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))


def test_every_registered_implementation_has_a_naive_twin() -> None:
    assert set(naive.HOSTS) == set(HOSTS)
    assert set(naive.BASES) == set(BASES)


@every_cell
def test_identity_at_initialisation(cell: Cell) -> None:
    model = cell.base()
    before = tiny.logits(model)
    cell.attach(model)
    assert torch.equal(tiny.logits(model), before)


@every_cell
def test_forward_equals_a_naive_loop_over_copies(cell: Cell) -> None:
    model, adapter = cell.adapted()
    wanted = tiny.logits(naive.adapted(cell.base(), adapter))
    assert distance(tiny.logits(model), wanted) < TOLERANCE[cell.dtype]
    with capaft.disabled(model):
        assert distance(tiny.logits(model), wanted) > TOLERANCE[cell.dtype], "the adapter changes too little"


@every_cell
def test_merged_equals_unmerged(cell: Cell) -> None:
    model, adapter = cell.adapted()
    unmerged = tiny.logits(model)
    keys = [name for name in model.state_dict() if "capaft" not in name]
    weights = {site: site.weight(model).detach().cpu().double() for site in adapter.plan.sites}
    assert capaft.merge(model) == len(adapter.plan.sites)
    assert distance(tiny.logits(model), unmerged) < TOLERANCE[cell.dtype]
    assert not capaft.adapters(model)
    assert list(model.state_dict()) == keys
    for site, weight in weights.items():
        wanted = weight + naive.update(adapter, site)
        rounding = 4 * torch.finfo(cell.dtype).eps * wanted.abs().max()
        assert (site.weight(model).detach().cpu().double() - wanted).abs().max() <= rounding


@every_cell
def test_detaching_restores_the_model(cell: Cell) -> None:
    model = cell.base()
    next(model.parameters()).requires_grad_(False)
    before = state(model)
    adapter = cell.attach(model)
    assert state(model) != before
    tiny.train(model)
    assert capaft.detach(model) is adapter
    for parameter in model.parameters():
        assert parameter.grad is None
    assert state(model) == before


@pytest.mark.parametrize(("made", "loaded"), list(product(DEVICES, DEVICES)))
@pytest.mark.parametrize("cell", [c for c in TABLE if c.device == "cpu"], ids=str)
def test_saved_and_loaded_into_a_fresh_model(cell: Cell, made: str, loaded: str, tmp_path: Path) -> None:
    model = cell.base().to(made)
    adapter = tiny.scramble(cell.attach(model))
    capaft.save(model, tmp_path / "adapter.safetensors")
    fresh = cell.base().to(loaded)
    other = capaft.load(fresh, tmp_path / "adapter.safetensors")
    streams, others = (dict(each.named_buffers()) for each in (adapter, other))
    assert streams.keys() == others.keys()
    assert all(tensor.device.type == loaded for tensor in others.values())
    assert all(torch.equal(streams[name].cpu(), others[name].cpu()) for name in streams)
    assert all_equal(numbers(adapter), numbers(other))
    assert distance(tiny.logits(fresh), tiny.logits(model)) <= (0 if made == loaded else TOLERANCE[cell.dtype])


@every_cell
def test_only_the_adapter_is_trained_and_all_of_it(cell: Cell) -> None:
    model = cell.base()
    base = dict(model.named_parameters())
    adapter = cell.attach(model)
    tiny.train(model, steps=2)
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in base.values())
    for role, parameter in adapter.numbers.items():
        assert parameter.dtype == torch.float32
        assert parameter.grad is not None, role
        assert parameter.grad.isfinite().all(), role
        # A sum in bfloat16 may come to nothing.
        reached = (parameter.grad != 0).double().mean()
        assert reached == 1 if cell.dtype == torch.float32 else reached > 0.99, role


@float32_cells
def test_gradients_are_the_slopes_of_the_naive_loop(cell: Cell) -> None:
    model, adapter = cell.adapted()
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(tiny.logits(model).shape, generator=generator)
    (tiny.logits(model) * weights.to(cell.device)).sum().backward()
    for role, parameter in adapter.numbers.items():
        direction = torch.randn(parameter.shape, generator=generator).to(cell.device)
        step = 1e-2 * direction / direction.norm()
        ends = []
        for offset in (step, -2 * step):
            parameter.data += offset
            ends.append((tiny.logits(naive.adapted(cell.base(), adapter)) * weights).sum().item())
        parameter.data += step
        slope = (ends[0] - ends[1]) / 2
        gradient = float(parameter.grad.norm() * step.norm())
        assert slope == pytest.approx(float((parameter.grad * step).sum()), abs=2e-3 * gradient), role


@float32_cells
def test_the_order_of_construction_changes_nothing(cell: Cell) -> None:
    adapter = cell.attach(cell.base())
    model = cell.base()
    for module in model.modules():
        if not isinstance(module, (nn.ModuleList, nn.Sequential)):
            for name in reversed(list(module._modules)):
                module._modules[name] = module._modules.pop(name)
    torch.manual_seed(99)
    np.random.seed(99)
    random.seed(99)
    globally = (torch.get_rng_state(), np.random.get_state(), random.getstate())
    other = cell.attach(model, targets=",".join(reversed(cell.targets.split(","))))
    assert torch.equal(torch.get_rng_state(), globally[0])
    assert str(np.random.get_state()) == str(globally[1])
    assert random.getstate() == globally[2]
    assert [site.path for site in other.plan.sites] == [site.path for site in adapter.plan.sites]
    assert all_equal(numbers(other), numbers(adapter))
    assert all_equal(factors(tiny.scramble(other)), factors(tiny.scramble(adapter)))


@float32_cells
def test_adapters_on_two_models_do_not_disturb_one_another(cell: Cell) -> None:
    alone = [tiny.logits(tiny.train(cell.adapted(**options)[0], 1)) for options in ({}, cell.elsewhere)]
    models = [cell.adapted(**options)[0] for options in ({}, cell.elsewhere)]
    for model in reversed(models):
        tiny.train(model, 1)
    for model, wanted in zip(models, alone, strict=True):
        torch.testing.assert_close(tiny.logits(model), wanted, rtol=1e-6, atol=1e-6)


@float32_cells
def test_two_adapters_on_one_model_do_not_disturb_one_another(cell: Cell) -> None:
    model = cell.base()
    before = state(model)
    first = tiny.scramble(cell.attach(model, name="first"))
    alone = tiny.logits(model)
    second = tiny.scramble(cell.attach(model, name="second", **cell.elsewhere), seed=1)
    kept = numbers(first)
    assert distance(tiny.logits(model), tiny.logits(naive.adapted(cell.base(), first, second))) < TOLERANCE[cell.dtype]
    capaft.detach(model, "second")
    assert torch.equal(tiny.logits(model), alone)
    assert all_equal(numbers(first), kept)
    attach_plan(model, second.plan, name="second")
    capaft.detach(model, "first")
    assert not any(p.requires_grad for name, p in model.named_parameters() if "capaft" not in name)
    assert all(p.requires_grad for p in capaft.adapters(model)["second"].parameters())
    capaft.detach(model, "second")
    assert state(model) == before


@float32_cells
def test_the_number_of_parameters_is_the_closed_form(cell: Cell) -> None:
    decided = plan(cell.base(), parse(cell.method, **cell.options), targets=cell.targets, seed=5)
    wanted = sum(naive.count(decided, site, role) for site in decided.sites for role in naive.shapes(decided, site))
    assert trained_numbers(decided) == wanted
    assert sum(each.numel() for each in Adapter(decided).numbers.values()) == wanted
    low, high = (sum(bound[i] for bound in decided.bounds().values()) for i in (0, 1))
    assert low <= wanted <= high


@float32_cells
def test_the_same_seed_makes_the_same_file(cell: Cell, tmp_path: Path) -> None:
    content = []
    for seed in (5, 5, 6):
        model = cell.base()
        adapter = cell.attach(model, seed=seed)
        capaft.save(tiny.train(model, 1), tmp_path / "adapter.safetensors")
        content.append(((tmp_path / "adapter.safetensors").read_bytes(), factors(adapter)))
    (same, ours), (again, theirs), (other, others) = content
    if cell.device == "cpu":
        assert same == again
    assert same != other
    assert all(torch.allclose(*pair) for pair in zip(ours, theirs, strict=True))
    assert not any(torch.equal(*pair) for pair in zip(ours, others, strict=True))


def test_loaded_in_a_fresh_process(tmp_path: Path) -> None:
    cells = [c for c in TABLE if (c.transform, c.dtype, c.device) == ("d=2", torch.float32, "cpu")]
    wanted = {}
    for cell in cells:
        model, _ = cell.adapted()
        capaft.save(model, tmp_path / f"{cell}.safetensors")
        wanted[str(cell)] = tiny.logits(model)
    script = """
import sys, test_contract, tiny, capaft, safetensors.torch
found = {}
for cell in test_contract.TABLE:
    if str(cell) in sys.argv[2:]:
        model = cell.base()
        capaft.load(model, f"{sys.argv[1]}/{cell}.safetensors")
        found[str(cell)] = tiny.logits(model).detach()
safetensors.torch.save_file(found, f"{sys.argv[1]}/logits")
"""
    environ = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONHASHSEED": "1"}
    command = [sys.executable, "-c", script, str(tmp_path), *wanted]
    subprocess.run(command, cwd=Path(__file__).parent, env=environ, check=True)
    found = load_file(tmp_path / "logits")
    assert found.keys() == wanted.keys()
    for name, each in wanted.items():
        torch.testing.assert_close(found[name], each.detach(), rtol=0, atol=1e-7)
