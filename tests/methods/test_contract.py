"""The laws of every adapter, over every host, basis, transform, layout, dtype and device at once.

A new host or basis joins by being registered; all that it needs here is its formula in `naive.py`. A stack that does
not compose is a cell as well: it must be refused, with its reason. Run as a script, this file prints the table.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
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
from capaft.adapter.budget import count_trainable
from capaft.adapter.install import attach_plan
from capaft.adapter.module import Adapter
from capaft.adapter.plan import Placement, Plan, make_plan
from capaft.adapter.rank import inspect_ranks
from capaft.factors.basis import BASES
from capaft.methods.host import Host
from capaft.methods.registry import HOSTS
from capaft.methods.stack import parse_stack
from capaft.model.targets import Targets
from capaft.support.errors import UsageError

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
# `@model`: all sites share one vector of coefficients.
PARAMETERISATIONS = ["dense", *BASES, "hadamard@model", "group@model"]
TRANSFORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "d=2": {"copies": 2, "density": 0.5},
    "d=3": {"copies": 3, "density": 0.4},
    "partition": {"copies": 2, "masks": "partition"},
    "d=2, rescaled": {"copies": 2, "density": 0.5, "mask_rescale": "variance"},
}
# The compositions to run where the layout or the precision is in question.
FEW = [("dense", "plain"), ("hadamard", "plain"), ("uniform", "d=2, rescaled"), ("group@model", "partition")]
# Options under which every parameter takes part in the loss. A bias of keys does not: it shifts all scores of a query
# alike, so that the softmax never sees it.
REACHED = {"bitfit": {"exclude": "re:(key|c_attn|query_key_value)$"}}
# Sizes where 4 would leave too little difference.
SIZES = {"vera": 32}
# Greatest distance from a model in float64, relative to the norm of its logits.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}


@dataclass(frozen=True)
class Layout:
    """A kind of model.

    Attributes:
        base: makes a model.
        targets: targets of hosts that adapt any layer.
        others: targets of a second adapter.
        blocks: True if it has transformer blocks, so that hosts with places of their own need no targets.
        without: hosts that have no place in it, and part of their message.
    """

    base: Callable[[], Any]
    targets: str
    others: str
    blocks: bool = True
    without: dict[str, str] = field(default_factory=dict)


NO_BLOCKS = dict.fromkeys(["houlsby", "pfeiffer", "parallel"], "has no transformer blocks") | {
    "prefix": "needs attention that goes through transformers' attention interface"
}
LAYOUTS = {
    "linear": Layout(tiny.bert, "query,value,layer.1.intermediate.dense,layer.1.output.dense", "value,key"),
    "conv1d": Layout(tiny.gpt2, "qv", "h.1.attn.c_attn,c_fc,mlp.c_proj"),
    "interleaved": Layout(tiny.neox, "qv", "kv"),
    "experts": Layout(
        tiny.mixtral, "experts", "qv", without={"bitfit": "has no biases to train", "ia3": "whose experts are packed"}
    ),
    "kernels": Layout(
        tiny.kernels, "words,line,picture", "line", False, NO_BLOCKS | {"bitfit": "matches none of the biases"}
    ),
    "read, not called": Layout(
        tiny.reader, "query,value", "value", False, NO_BLOCKS | {"ia3": "which is read but not called"}
    ),
}


@cache
def unchanged(layout: str) -> Any:
    """A model that no test changes."""
    return LAYOUTS[layout].base()


@dataclass(frozen=True)
class Cell:
    """One cell of the table, with everything needed to make its adapter."""

    host: str
    parameterisation: str
    transform: str
    layout: str = "linear"
    dtype: torch.dtype = torch.float32
    device: str = "cpu"

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return "-".join((self.host, self.parameterisation, self.transform, self.layout, dtype, self.device))

    @property
    def unfit(self) -> str:
        """Reason why the stack does not compose; empty if it does."""
        return HOSTS[self.host].narrow if self.transform != "plain" else ""

    @property
    def method(self) -> str:
        parts = [self.host, *(["nola"] if self.parameterisation != "dense" else [])]
        return "+".join([*parts, *(["capaboost"] if self.transform != "plain" else [])])

    @property
    def options(self) -> dict[str, Any]:
        basis, _, scope = self.parameterisation.partition("@")
        nola = {} if basis == "dense" else {"basis": basis, "scope": scope or "site", "k": (12, 4)}
        size = {HOSTS[self.host].size: SIZES.get(self.host, 4)} if HOSTS[self.host].size else {}
        return {"alpha": 6.0, **size, **nola, **TRANSFORMS[self.transform]}

    @property
    def small(self) -> dict[str, Any]:
        """A size that leaves room for the copies in every layer."""
        return {HOSTS[self.host].size: 3}

    @property
    def copies(self) -> int:
        return int(TRANSFORMS[self.transform].get("copies", 1))

    @property
    def by_target(self) -> bool:
        """True if the host needs targets."""
        return bool(HOSTS[self.host].default_targets) or not LAYOUTS[self.layout].blocks

    @property
    def targets(self) -> str:
        return LAYOUTS[self.layout].targets if self.by_target else ""

    @property
    def elsewhere(self) -> dict[str, Any]:
        """Options of a second adapter."""
        place = {"targets": LAYOUTS[self.layout].others} if self.by_target else {"layers": "0"}
        return place | {"seed": 8}

    @property
    def mask(self) -> Tensor | None:
        """Attention mask of the sequences, or None for models that take none."""
        return tiny.MASK if LAYOUTS[self.layout].blocks else None

    @property
    def tolerance(self) -> float:
        return TOLERANCE[self.dtype]

    def base(self) -> Any:
        return LAYOUTS[self.layout].base().to(self.device, self.dtype)

    def plan(self, seed: int = 5) -> Plan:
        return make_plan(
            unchanged(self.layout),
            parse_stack(self.method, **self.options),
            Placement(Targets(self.targets), seed),
        )

    def attach(self, model: nn.Module, **options: Any) -> Adapter:
        return capaft.attach(model, self.method, **{"targets": self.targets, "seed": 5} | self.options | options)

    def adapted(self, **options: Any) -> tuple[Any, Adapter]:
        """A model with an adapter whose parameters are as training might leave them."""
        model = self.base()
        return model, tiny.scramble(self.attach(model, **options))

    def logits(self, model: nn.Module) -> Tensor:
        return tiny.logits(model, mask=self.mask)

    def train(self, model: nn.Module, steps: int) -> nn.Module:
        return tiny.train(model, steps, mask=self.mask)


MAIN = [Cell(*names) for names in product(HOSTS, PARAMETERISATIONS, TRANSFORMS)]
FURTHER = [Cell(host, *few, layout) for host, few, layout in product(HOSTS, FEW, list(LAYOUTS)[1:])]
HALF = [Cell(host, *few, dtype=torch.bfloat16) for host, few in product(HOSTS, FEW[::2])]
EVERYWHERE = [
    Cell(c.host, c.parameterisation, c.transform, c.layout, c.dtype, device)
    for c, device in product([*MAIN, *FURTHER, *HALF], DEVICES)
]
PLACED = [cell for cell in EVERYWHERE if cell.host not in LAYOUTS[cell.layout].without]
TABLE = [cell for cell in PLACED if not cell.unfit]


# Stacks whose update is a product of factors.
RANKED = [
    c for c in TABLE if HOSTS[c.host].product is not Host.product and (c.dtype, c.device) == (torch.float32, "cpu")
]


def over(cells: list[Cell], **conditions: Any) -> Any:
    chosen = [c for c in cells if all(getattr(c, key) == value for key, value in conditions.items())]
    return pytest.mark.parametrize("cell", chosen, ids=str)


every_cell = over(TABLE)
# For laws in which the dtype of the base model plays no part.
float32_cells = over(TABLE, dtype=torch.float32)
# For laws in which the layout plays none either.
main_cells = over(TABLE, dtype=torch.float32, layout="linear")


def distance(actual: Tensor, expected: Tensor) -> float:
    """Distance relative to the norm of `expected`."""
    actual, expected = (tensor.detach().cpu().double() for tensor in (actual, expected))
    return float((actual - expected).norm() / expected.norm())


def state(model: Any) -> dict[str, Any]:
    """Everything that attaching may touch: tensors, flags, modules, hooks and the choice of attention."""
    values: dict[str, Any] = {"attention": getattr(getattr(model, "config", None), "_attn_implementation", None)}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        values[name] = (
            tensor.dtype,
            tensor.requires_grad,
            tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes(),
        )
    for name, module in model.named_modules():
        hooks = {key: dict(value) for key, value in vars(module).items() if isinstance(value, OrderedDict)}
        values["module " + name] = (type(module), module.training, list(vars(module)), hooks)
    return values


def parameters(adapter: Adapter) -> list[Tensor]:
    return [p.detach().cpu().clone() for p in adapter.role_parameters.values()]


def factors(adapter: Adapter) -> list[Tensor]:
    """All factors that an adapter's parameters and streams make, without gradient."""
    with torch.no_grad():
        return [factor.cpu() for site in adapter.expand() for factor in site]


def all_equal(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))


def test_every_registered_implementation_has_a_naive_twin() -> None:
    assert set(naive.HOSTS) == set(HOSTS)
    assert set(naive.BASES) - {"shared group"} == set(BASES)


@pytest.mark.parametrize("cell", [c for c in MAIN if c.unfit], ids=str)
def test_what_does_not_compose_is_refused_with_its_reason(cell: Cell) -> None:
    with pytest.raises(UsageError, match=re.escape(cell.unfit)) as refusal:
        parse_stack(cell.method, **cell.options)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(("host", "layout"), [(h, name) for name, layout in LAYOUTS.items() for h in layout.without])
def test_a_host_says_why_a_model_has_no_place_for_it(host: str, layout: str) -> None:
    with pytest.raises(UsageError, match=LAYOUTS[layout].without[host]) as refusal:
        Cell(host, "dense", "plain", layout).plan()
    assert "\n" not in str(refusal.value)


@every_cell
def test_identity_at_initialisation_training_and_detaching(cell: Cell) -> None:
    model = cell.base()
    base = dict(model.named_parameters())
    next(model.parameters()).requires_grad_(False)
    before, logits = state(model), cell.logits(model)
    # The units of this activation cannot die.
    adapter = cell.attach(model, activation="swish", **REACHED.get(cell.host, {}))
    assert state(model) != before
    assert torch.equal(cell.logits(model), logits)
    cell.train(model.train(), 2)
    # Only the adapter is trained, and all of it; no statistics run on.
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in base.values())
    for role, parameter in adapter.role_parameters.items():
        assert parameter.dtype == torch.float32
        assert parameter.grad is not None, role
        assert parameter.grad.isfinite().all(), role
        # A sum in bfloat16 may be 0.
        reached = (parameter.grad != 0).double().mean()
        assert reached == 1 if cell.dtype == torch.float32 else reached > 0.9, role
    assert capaft.detach(model) is adapter
    assert state(model.eval()) == before


@every_cell
def test_forward_and_gradients_equal_a_naive_loop_over_copies(cell: Cell) -> None:
    model, adapter = cell.adapted()
    logits = cell.logits(model)
    exact = {role: p.detach().cpu().double().requires_grad_() for role, p in adapter.role_parameters.items()}
    expected = cell.logits(naive.adapted(cell.base(), adapter, parameters=exact))
    assert distance(logits, expected) < cell.tolerance
    if cell.dtype == torch.float32:
        with capaft.disabled(model):
            assert distance(cell.logits(model), expected) > 10 * cell.tolerance, "the adapter changes too little"
        weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
        (logits * weights.to(cell.device)).sum().backward()
        (expected * weights).sum().backward()
        for role, parameter in adapter.role_parameters.items():
            assert distance(parameter.grad, exact[role].grad) < 1e-4, role


@pytest.mark.parametrize(("made", "loaded"), list(product(DEVICES, DEVICES)))
@over(TABLE, device="cpu")
def test_loaded_equals_saved_and_merged_equals_unmerged(cell: Cell, made: str, loaded: str, tmp_path: Path) -> None:
    model = cell.base().to(made)
    adapter = tiny.scramble(cell.attach(model))
    capaft.save(model, tmp_path / "adapter.safetensors")
    fresh = cell.base().to(loaded)
    other = capaft.load(fresh, tmp_path / "adapter.safetensors")
    streams, others = (dict(module.named_buffers()) for module in (adapter, other))
    assert streams.keys() == others.keys()
    assert all(tensor.device.type == loaded for tensor in others.values())
    assert all(torch.equal(streams[name].cpu(), others[name].cpu()) for name in streams)
    assert all_equal(parameters(adapter), parameters(other))
    unmerged = cell.logits(fresh)
    assert distance(unmerged, cell.logits(model)) <= (0 if made == loaded else cell.tolerance)

    if reason := HOSTS[cell.host].unmergeable:
        with pytest.raises(UsageError, match=re.escape(reason)):
            capaft.merge(fresh)
        assert capaft.adapters(fresh) == {"default": other}
        assert torch.equal(cell.logits(fresh), unmerged)
        return
    capaft.detach(model)
    assert capaft.merge(fresh) == len(other.plan.sites)
    assert distance(cell.logits(fresh), unmerged) < cell.tolerance
    assert not capaft.adapters(fresh)
    assert list(fresh.state_dict()) == list(model.state_dict())
    for site in other.plan.sites:
        merged = (naive.matrix(fresh, site), naive.offset(fresh, site))
        exact = naive.merged(other, site, naive.matrix(model, site), naive.offset(model, site))
        for actual, expected in zip(merged, exact, strict=True):
            rounding = 4 * torch.finfo(cell.dtype).eps * expected.abs().max()
            assert (actual.double() - expected).abs().max() <= rounding, site.path


@main_cells
def test_the_same_seed_makes_the_same_file_whatever_else_is_made_and_in_whatever_order(
    cell: Cell, tmp_path: Path
) -> None:
    model = cell.base()
    adapter = cell.attach(model)
    capaft.save(cell.train(model, 1), tmp_path / "alone")

    beside, other = cell.base(), cell.base()
    cell.attach(other, **cell.elsewhere)
    for path, module in beside.named_modules():
        # Inside a block, the order of the layers determines where its parts end.
        inside = not cell.by_target and re.search(r"\.\d+(\.|$)", path)
        if not inside and not isinstance(module, (nn.ModuleList, nn.Sequential)):
            for name in reversed(list(module._modules)):
                module._modules[name] = module._modules.pop(name)
    torch.manual_seed(99)
    np.random.seed(99)
    random.seed(99)
    globally = (torch.get_rng_state(), np.random.get_state(), random.getstate())
    twin = cell.attach(beside)
    assert torch.equal(torch.get_rng_state(), globally[0])
    assert str(np.random.get_state()) == str(globally[1])
    assert random.getstate() == globally[2]
    assert [site.path for site in twin.plan.sites] == [site.path for site in adapter.plan.sites]
    others = cell.logits(cell.train(other, 1))
    cell.train(beside, 1)
    assert torch.equal(cell.logits(other), others)
    assert all(torch.allclose(*pair) for pair in zip(factors(twin), factors(adapter), strict=True))
    if cell.device == "cpu":
        capaft.save(beside, tmp_path / "beside")
        assert (tmp_path / "alone").read_bytes() == (tmp_path / "beside").read_bytes()


@main_cells
def test_another_seed_makes_another_adapter(cell: Cell) -> None:
    ours, theirs = (Adapter(cell.plan(seed)) for seed in (5, 9))
    if cell.parameterisation != "dense" or cell.transform != "plain":
        # Where factors are trained directly, only their initial values are drawn.
        ours, theirs = tiny.scramble(ours), tiny.scramble(theirs)
    drawn = [naive.is_drawn(ours.plan, part) for s in ours.plan.sites for part in naive.parts(ours.plan, s).values()]
    for one, another, is_drawn in zip(factors(ours), factors(theirs), drawn, strict=True):
        assert not (is_drawn and torch.equal(one, another))


@main_cells
def test_two_adapters_on_one_model_do_not_disturb_one_another(cell: Cell) -> None:
    model = cell.base()
    before, base = state(model), cell.logits(model)
    first = tiny.scramble(cell.attach(model, name="first"))
    alone = cell.logits(model)
    second = tiny.scramble(cell.attach(model, name="second", **cell.elsewhere), seed=1)
    before_detaching = parameters(first)
    # The first stays active, and the two act together only if asked to.
    assert torch.equal(cell.logits(model), alone)
    assert not any(p.requires_grad for p in second.parameters())
    capaft.switch(model, ["first", "second"])
    assert distance(cell.logits(model), cell.logits(naive.adapted(cell.base(), first, second))) < cell.tolerance
    capaft.switch(model, [])
    assert torch.equal(cell.logits(model), base)
    capaft.switch(model, ["first", "second"])
    capaft.detach(model, "second")
    assert torch.equal(cell.logits(model), alone)
    assert all_equal(parameters(first), before_detaching)
    attach_plan(model, second.plan, name="second")
    capaft.detach(model, "first")
    assert torch.equal(cell.logits(model), base)
    capaft.switch(model, "second")
    assert not any(p.requires_grad for name, p in model.named_parameters() if "capaft" not in name)
    assert all(p.requires_grad for p in capaft.adapters(model)["second"].parameters())
    capaft.detach(model, "second")
    assert state(model) == before


@main_cells
def test_switching_swaps_all_that_an_adapter_trains(cell: Cell) -> None:
    """Each adapter has a head of its own, and the second one more labels."""
    model = cell.base()
    before, base = state(model), cell.logits(model)
    outputs, values = {}, {}
    for seed, (name, labels) in enumerate({"first": None, "second": 5}.items()):
        head = ["classifier.weight", "classifier.bias"]
        adapter = tiny.scramble(cell.attach(model, name=name, head=head, labels=labels), seed=seed)
        capaft.switch(model, name)
        cell.train(model, 1)
        outputs[name] = cell.logits(model)
        values[name] = {key: p.detach().clone() for key, p in adapter.trained(model).items()}
    for name in ("first", "second", "first"):
        capaft.switch(model, name)
        assert torch.equal(cell.logits(model), outputs[name])
        assert model.num_labels == model.config.num_labels == outputs[name].shape[1]
        with capaft.disabled(model):
            assert torch.equal(cell.logits(model), base)
        for other, adapter in capaft.adapters(model).items():
            assert all(torch.equal(p, values[other][key]) for key, p in adapter.trained(model).items())
            assert all(p.requires_grad == (other == name) for p in adapter.trained(model).values())
    for name in ("second", "first"):
        capaft.detach(model, name)
    assert state(model) == before
    assert model.num_labels == 3


@over(RANKED)
def test_the_rank_is_that_of_all_copies_together(cell: Cell) -> None:
    model, adapter = cell.adapted(**cell.small)
    for site, report in zip(adapter.plan.sites, inspect_ranks(model), strict=True):
        update = naive.product(adapter, site).detach().numpy()
        expected = min(cell.small[HOSTS[cell.host].size] * cell.copies, *update.shape)
        assert np.linalg.matrix_rank(update, rtol=1e-6) == expected, site.path
        assert report.numerical_rank == expected, site.path


@pytest.mark.parametrize("host", sorted({c.host for c in RANKED if not HOSTS[c.host].unmergeable}))
@pytest.mark.parametrize("masks", [{"density": 0.2}, {"density": 0.9}, {"masks": "partition"}], ids=str)
@pytest.mark.parametrize("copies", [2, 4])
def test_the_rank_under_thin_and_many_masks(host: str, masks: dict[str, Any], copies: int) -> None:
    model, targets = LAYOUTS["linear"].base(), LAYOUTS["linear"].targets
    adapter = capaft.attach(model, f"{host}+capaboost", rank=2, copies=copies, targets=targets, **masks)
    tiny.scramble(adapter)
    for site, report in zip(adapter.plan.sites, inspect_ranks(model), strict=True):
        update = naive.product(adapter, site).detach().numpy()
        expected = min(2 * copies, *update.shape)
        assert (np.linalg.matrix_rank(update, rtol=1e-6), report.numerical_rank) == (expected, expected), site.path


@float32_cells
def test_the_number_of_parameters_is_the_closed_form(cell: Cell) -> None:
    plan = cell.plan()
    total = naive.total(plan)
    assert count_trainable(plan) == total
    assert sum(p.numel() for p in Adapter(plan).role_parameters.values()) == total
    low, high = (sum(bound[i] for bound in plan.bounds().values()) for i in (0, 1))
    assert low <= total <= high


def product_table() -> str:
    """The table of everything that was run, in Markdown: compositions in the main layout, and the other layouts."""
    reasons: dict[str, int] = {}

    def entry(cells: list[Cell], reason: str) -> str:
        """A cell of the table; the laws must run over it, or it must be refused."""
        assert bool(reason) != bool(set(cells) & set(TABLE)), (cells, reason)
        return f"- [{reasons.setdefault(reason, len(reasons) + 1)}]" if reason else "ok"

    def table(*heads: str) -> list[str]:
        return ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]

    lines = table("host", "parameterisation", *TRANSFORMS)
    for host, parameterisation in product(HOSTS, PARAMETERISATIONS):
        cells = [Cell(host, parameterisation, transform) for transform in TRANSFORMS]
        lines.append("| " + " | ".join([host, parameterisation, *(entry([c], c.unfit) for c in cells)]) + " |")
    lines += ["", *table("host", *LAYOUTS)]
    for host in HOSTS:
        row = [
            entry([Cell(host, *few, name) for few in FEW], layout.without.get(host, ""))
            for name, layout in LAYOUTS.items()
        ]
        lines.append("| " + " | ".join([host, *row]) + " |")
    return "\n".join([*lines, "", *(f"{number}. {reason}" for reason, number in reasons.items())])


def test_the_table_in_the_documentation_is_the_one_that_was_run() -> None:
    text = (Path(__file__).parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")
    table = re.search("<!-- product table -->\n(.*?)\n<!-- end -->", text, re.DOTALL)
    assert table, "docs/methods.md has no table"
    assert table[1].strip() == product_table(), "this file, run as a script, prints the table"


def test_loaded_in_a_fresh_process(tmp_path: Path) -> None:
    fits = {("dense", "d=2"), ("hadamard", "plain")}
    cells = [c for c in TABLE if (c.parameterisation, c.transform) in fits or (c.host, c.transform) == ("lora", "d=2")]
    cells = [c for c in cells if (c.dtype, c.device) == (torch.float32, "cpu")]
    expected = {}
    for cell in cells:
        model, _ = cell.adapted()
        capaft.save(model, tmp_path / f"{cell}.safetensors")
        expected[str(cell)] = cell.logits(model)
    script = """
import sys, test_contract, capaft, safetensors.torch
logits = {}
for cell in test_contract.TABLE:
    if str(cell) in sys.argv[2:]:
        model = cell.base()
        capaft.load(model, f"{sys.argv[1]}/{cell}.safetensors")
        logits[str(cell)] = cell.logits(model).detach()
safetensors.torch.save_file(logits, f"{sys.argv[1]}/logits")
"""
    environ = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONHASHSEED": "1"}
    environ["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).parents[1] / "support"), os.environ.get("PYTHONPATH", "")]
    )
    command = [sys.executable, "-c", script, str(tmp_path), *expected]
    subprocess.run(command, cwd=Path(__file__).parent, env=environ, check=True)
    loaded = load_file(tmp_path / "logits")
    assert loaded.keys() == expected.keys()
    for name, logits in expected.items():
        torch.testing.assert_close(loaded[name], logits.detach(), rtol=0, atol=1e-7)


if __name__ == "__main__":
    print(product_table())
