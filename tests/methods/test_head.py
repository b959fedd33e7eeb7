"""A head that takes little space, frozen or moved along a seeded basis, on models with small and large heads."""

from __future__ import annotations

import copy
import io
import os
import pickle
import random
import subprocess
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import naive
import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import GPT2Config, GPT2ForSequenceClassification, RobertaConfig, RobertaForSequenceClassification

import capaft
from capaft.adapter.activation import get_adapter
from capaft.adapter.budget import count_trainable, fit_to_budget
from capaft.adapter.file.adapter_file import read
from capaft.adapter.file.encoding import SAVE_DTYPES
from capaft.adapter.file.save_load import restore_parameters
from capaft.adapter.module import Adapter
from capaft.adapter.plan import Placement, Plan, make_plan
from capaft.commands.info import describe_file
from capaft.methods.stack import parse_stack
from capaft.model.load import initialise_head
from capaft.model.origin import Origin
from capaft.support.errors import AdapterFileError, UsageError

SEED = 5
STACKS: dict[str, dict[str, Any]] = {
    "head": {},
    "lora": {"rank": 3},
    "nola": {"rank": 3, "k": 9},
    "lora+nola+capaboost": {"rank": 3, "k": 9, "scope": "model"},
    "dora+nola": {"rank": 3, "k": (9, 5), "basis": "uniform"},
    "bitfit": {},
    "prefix+nola": {"prefix_length": 2, "k": 9},
}


@cache
def _roberta() -> Any:
    config = RobertaConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=40,
        num_labels=3,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return _seeded(tiny.build(RobertaForSequenceClassification, config))


@cache
def _gpt2() -> Any:
    config = GPT2Config(
        vocab_size=64,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=32,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        num_labels=3,
        pad_token_id=0,
    )
    return _seeded(tiny.build(GPT2ForSequenceClassification, config))


@cache
def _bert() -> Any:
    return _seeded(tiny.bert())


def _seeded(model: Any) -> Any:
    """Give a model the values of a new head."""
    initialise_head(model, names_of_head(model), SEED)
    return model


def names_of_head(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters() if name.startswith(("classifier.", "score."))]


MODELS = {"roberta": _roberta, "bert": _bert, "gpt2": _gpt2}
K = {"roberta": 16, "bert": 20, "gpt2": 31}
# The parameters with more entries than that; in RoBERTa's head, one is a bias.
MOVED = {
    "roberta": ["classifier.dense.bias", "classifier.dense.weight", "classifier.out_proj.weight"],
    "bert": ["classifier.weight"],
    "gpt2": ["score.weight"],
}


def base(kind: str) -> Any:
    return copy.deepcopy(MODELS[kind]())


def options(kind: str, method: str) -> dict[str, Any]:
    model = MODELS[kind]()
    return {"head": names_of_head(model), "head_mode": "nola", "head_k": K[kind], "seed": SEED} | STACKS[method]


def adapted(kind: str = "roberta", method: str = "nola", **further: Any) -> tuple[Any, Adapter]:
    """A model whose adapter and head have parameters as training might leave them."""
    model = base(kind)
    adapter = tiny.scramble(capaft.attach(model, method, **(options(kind, method) | further)))
    with torch.no_grad():
        for name in adapter.plan.trained:
            stored(model, name).add_(0.1)
    return model, adapter


def moves(adapter: Adapter, coefficients: Tensor | None = None) -> dict[str, Tensor]:
    """`G c` of every parameter of the head that has coefficients, by its name, float64, the slow way."""
    head, changes = adapter.plan.head, {}
    rows = adapter.role_parameters["head"].detach().double() if coefficients is None else coefficients
    names = sorted(f"{site.path}.{site.parameter}" for site in head.parameters)
    for name, row in zip(names, rows, strict=True):
        path, _, leaf = name.rpartition(".")
        (n,) = {s.in_features * s.out_features for s in head.parameters if (s.path, s.parameter) == (path, leaf)}
        basis = naive.basis(adapter.plan.stack.basis, adapter.plan.seed, ((path, n),), f"head:{leaf}", head.k)[path]
        changes[name] = torch.from_numpy(basis) @ row
    return changes


def stored(model: nn.Module, name: str) -> Tensor:
    """A parameter as the model stores it, without its adapters, by its canonical name or its name in the model."""
    parameters = dict(model.named_parameters())
    return next(value for key, value in parameters.items() if key == name or key.endswith(f".{name}"))


def heads(model: nn.Module) -> dict[str, Tensor]:
    """The parameters of the head as the model reads them."""
    return {
        name: getattr(model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2])
        for name in names_of_head(model)
    }


def state(model: nn.Module) -> dict[str, Any]:
    values: dict[str, Any] = {name: type(module) for name, module in model.named_modules()}
    for name, parameter in model.named_parameters():
        values["parameter " + name] = (parameter.requires_grad, parameter.detach().numpy().tobytes())
    return values


def distance(actual: Tensor, expected: Tensor) -> float:
    actual, expected = actual.detach().double(), expected.detach().double()
    return float((actual - expected).norm() / expected.norm())


everywhere = pytest.mark.parametrize(("kind", "method"), [(kind, method) for kind in MODELS for method in STACKS])
some = pytest.mark.parametrize(
    ("kind", "method"), [("roberta", "head"), ("roberta", "lora+nola+capaboost"), ("bert", "lora"), ("gpt2", "nola")]
)


# A head with coefficients


@pytest.mark.parametrize("basis", ["hadamard", "uniform", "group"])
@pytest.mark.parametrize("kind", MODELS)
def test_a_head_is_what_it_was_and_what_its_coefficients_make_of_the_seed(kind: str, basis: str) -> None:
    k = K[kind]
    model, adapter = adapted(kind, k=9, basis=basis, head_k=k)
    assert [f"{site.path}.{site.parameter}" for site in adapter.plan.head.parameters] == MOVED[kind]
    assert adapter.plan.trained == tuple(sorted(set(names_of_head(model)) - set(MOVED[kind])))
    assert adapter.role_parameters["head"].shape == (len(MOVED[kind]), k)
    assert adapter.role_parameters["head"].dtype == torch.float32
    before, change, after = base(kind), moves(adapter), heads(model)
    for name in MOVED[kind]:
        expected = stored(before, name).double() + change[name].view(stored(before, name).shape)
        assert distance(after[name], expected) < 1e-6
        assert distance(after[name], stored(before, name)) > 0.1 or name.endswith("bias")
        assert torch.equal(stored(model, name), stored(before, name))


@everywhere
def test_forward_and_gradients_are_those_of_the_changed_head(kind: str, method: str) -> None:
    """Against the same model in float64 whose head was changed by hand; the rest of the adapter stays the same."""
    model, adapter = adapted(kind, method)
    weights = torch.randn(2, 3, generator=torch.Generator().manual_seed(1))
    logits = tiny.logits(model)
    (logits * weights).sum().backward()

    other = base(kind).double()
    twin = capaft.attach(other, method, seed=SEED, **STACKS[method])
    rows = adapter.role_parameters["head"].detach().double().requires_grad_()
    for role, parameter in twin.role_parameters.items():
        parameter.data.copy_(adapter.role_parameters[role])
    changed = {
        name: stored(other, name) + move.view(stored(other, name).shape) for name, move in moves(adapter, rows).items()
    }
    changed |= {name: stored(model, name).detach().double().requires_grad_() for name in adapter.plan.trained}
    for name, value in changed.items():
        module, leaf = other.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
        del module._parameters[leaf]
        setattr(module, leaf, value)
    expected = tiny.logits(other)
    (expected * weights).sum().backward()
    assert distance(logits, expected) < 1e-5
    assert distance(adapter.role_parameters["head"].grad, rows.grad) < 1e-4
    for name in adapter.plan.trained:
        assert distance(stored(model, name).grad, changed[name].grad) < 1e-4
    for role, parameter in twin.role_parameters.items():
        assert distance(adapter.role_parameters[role].grad, parameter.grad) < 1e-3, role


@everywhere
def test_identity_at_first_then_every_number_learns_and_detaching_restores(kind: str, method: str) -> None:
    model = base(kind)
    before, logits, names = state(model), tiny.logits(model), list(model.state_dict())
    adapter = capaft.attach(model, method, **options(kind, method))
    assert torch.equal(tiny.logits(model), logits)
    assert [name for name in model.state_dict() if "capaft" not in name] == names
    trained = adapter.trained(model)
    assert list(trained)[-len(adapter.plan.trained) - 1 :] == ["head", *(f"head:{n}" for n in adapter.plan.trained)]
    assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in trained.values()}
    tiny.train(model, 2)
    for name, parameter in trained.items():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert (adapter.role_parameters["head"].grad != 0).all()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad or parameter.grad is None, name
    assert not torch.equal(tiny.logits(model), logits)
    # Parameters that are trained directly belong to the model and keep their values.
    with torch.no_grad():
        for name in adapter.plan.trained:
            stored(model, name).copy_(stored(MODELS[kind](), name))
    capaft.detach(model)
    assert state(model) == before
    assert torch.equal(tiny.logits(model), logits)


@everywhere
def test_merged_equals_unmerged(kind: str, method: str) -> None:
    model, adapter = adapted(kind, method)
    unmerged, change = tiny.logits(model), moves(adapter)
    if method.startswith("prefix"):
        with pytest.raises(UsageError, match="cannot be merged"):
            capaft.merge(model)
        assert torch.equal(tiny.logits(model), unmerged)
        return
    assert capaft.merge(model) == len(adapter.plan.sites)
    assert distance(tiny.logits(model), unmerged) < 1e-5
    assert list(model.state_dict()) == list(base(kind).state_dict())
    for name, move in change.items():
        exact = stored(base(kind), name).double() + move.view(stored(model, name).shape)
        assert (stored(model, name) - exact).abs().max() <= 4e-7 * exact.abs().max()
    assert [type(module) for module in model.modules()] == [type(module) for module in base(kind).modules()]


# Files


@everywhere
def test_what_is_saved_comes_back(kind: str, method: str, tmp_path: Path) -> None:
    model, adapter = adapted(kind, method)
    path, fresh = tmp_path / "adapter.safetensors", base(kind)
    for dtype in SAVE_DTYPES:
        capaft.save(model, path, dtype=dtype)
        other = capaft.load(fresh, path)
        assert other.plan == adapter.plan
        if dtype == "float32":
            assert torch.equal(tiny.logits(fresh), tiny.logits(model))
        capaft.save(fresh, tmp_path / "again", dtype=dtype)
        if dtype.startswith(("float", "bfloat")):
            assert (tmp_path / "again").read_bytes() == path.read_bytes()
        capaft.detach(fresh)
        with torch.no_grad():
            for name in adapter.plan.trained:
                stored(fresh, name).copy_(stored(MODELS[kind](), name))
    restore_parameters(model, path)


def test_loaded_in_a_fresh_process(tmp_path: Path) -> None:
    cells = [("roberta", method) for method in STACKS] + [("bert", "lora"), ("gpt2", "nola")]
    expected = {}
    for cell in cells:
        model, _ = adapted(*cell)
        expected["-".join(cell)] = tiny.logits(model).detach()
        capaft.save(model, tmp_path / "-".join(cell))
    script = """
import sys, test_head, tiny, capaft, safetensors.torch
logits = {}
for cell in sys.argv[2:]:
    model = test_head.base(cell.partition("-")[0])
    capaft.load(model, f"{sys.argv[1]}/{cell}")
    logits[cell] = tiny.logits(model).detach()
safetensors.torch.save_file(logits, f"{sys.argv[1]}/logits")
"""
    environ = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONHASHSEED": "1"}
    environ["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).parents[1] / "support"), os.environ.get("PYTHONPATH", "")]
    )
    command = [sys.executable, "-c", script, str(tmp_path), *expected]
    subprocess.run(command, cwd=Path(__file__).parent, env=environ, check=True)
    loaded = load_file(tmp_path / "logits")
    for name, logits in expected.items():
        torch.testing.assert_close(loaded[name], logits, rtol=0, atol=1e-7)


@some
def test_the_same_seed_makes_the_same_file_whatever_else_is_made_and_in_whatever_order(
    kind: str, method: str, tmp_path: Path
) -> None:
    model = base(kind)
    capaft.attach(model, method, **options(kind, method))
    capaft.save(tiny.train(model, 1), tmp_path / "alone")
    beside, other = base(kind), base(kind)
    capaft.attach(other, "lora", head=names_of_head(other), head_mode="nola", head_k=7, seed=8)
    if kind == "roberta":
        modules = beside.classifier._modules
        for name in reversed(list(modules)):
            modules[name] = modules.pop(name)
    torch.manual_seed(99)
    np.random.seed(99)
    random.seed(99)
    before = torch.get_rng_state(), str(np.random.get_state()), random.getstate()
    capaft.attach(beside, method, **(options(kind, method) | {"head": names_of_head(beside)[::-1]}))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (str(np.random.get_state()), random.getstate()) == before[1:]
    capaft.save(tiny.train(beside, 1), tmp_path / "beside")
    assert (tmp_path / "alone").read_bytes() == (tmp_path / "beside").read_bytes()
    model = base(kind)
    adapter = capaft.attach(model, method, **(options(kind, method) | {"seed": 6}))
    assert not any(
        np.allclose(one, another)
        for one, another in zip(
            moves(tiny.scramble(adapter)).values(), moves(adapted(kind, method)[1]).values(), strict=True
        )
    )


def test_a_frozen_head_is_neither_trained_nor_stored(tmp_path: Path) -> None:
    model = base("roberta")
    adapter = capaft.attach(model, "nola", **(options("roberta", "nola") | {"head_mode": "frozen"}))
    assert adapter.plan.trained == ()
    assert list(adapter.trained(model)) == ["down", "up"]
    before = {name: value.clone() for name, value in heads(model).items()}
    tiny.train(model, 2)
    assert all(torch.equal(heads(model)[name], value) for name, value in before.items())
    capaft.save(model, tmp_path / "frozen")
    assert set(read(tmp_path / "frozen").tensors) == {"down", "up"}
    fresh = base("roberta")
    capaft.load(fresh, tmp_path / "frozen")
    assert torch.equal(tiny.logits(fresh), tiny.logits(model))
    assert capaft.merge(fresh) == 4
    assert distance(tiny.logits(fresh), tiny.logits(model)) < 1e-5


@pytest.mark.parametrize("mode", ["nola", "frozen"])
def test_another_start_of_the_head_is_noticed(mode: str, tmp_path: Path) -> None:
    """All that the file does not hold must be as it was."""
    model, other = base("roberta"), base("roberta")
    with torch.no_grad():
        model.classifier.dense.weight.mul_(2)
    before = state(other)
    capaft.attach(model, "lora", **(options("roberta", "lora") | {"head_mode": mode}))
    capaft.save(model, tmp_path / "adapter")
    with pytest.raises(AdapterFileError, match=r"other values of the head than this model's.*drawn from seed 5"):
        capaft.load(other, tmp_path / "adapter")
    assert state(other) == before
    capaft.load(other, tmp_path / "adapter", allow_base_mismatch=True)
    model, _ = adapted("roberta", "lora", head_mode=mode)
    capaft.save(model, tmp_path / "adapter")
    for dtype in (torch.bfloat16, torch.float16):
        capaft.load(base("roberta").to(dtype), tmp_path / "adapter")
    # One that was drawn from the seed is drawn again, and the model's own waits.
    initialise_head(other := base("roberta"), names_of_head(other), SEED + 1)
    before, own = state(other), tiny.logits(other)
    capaft.load(other, tmp_path / "adapter")
    assert torch.equal(tiny.logits(other), tiny.logits(model))
    capaft.save(other, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "adapter").read_bytes()
    with capaft.disabled(other):
        assert torch.equal(tiny.logits(other), own)
    merged = copy.deepcopy(other)
    capaft.merge(merged)
    assert distance(tiny.logits(merged), tiny.logits(model)) < 1e-5
    capaft.detach(other)
    assert state(other) == before


def test_a_head_of_another_shape_is_noticed(tmp_path: Path) -> None:
    model, _ = adapted("roberta", "head")
    capaft.save(model, tmp_path / "adapter")
    other = base("roberta")
    other.classifier.dense = nn.Linear(32, 40)
    with pytest.raises(AdapterFileError, match="a head of other shapes than RobertaForSequenceClassification has"):
        capaft.load(other, tmp_path / "adapter")
    with pytest.raises(AdapterFileError, match=r"has no parameter classifier\."):
        capaft.load(base("bert"), tmp_path / "adapter")


def test_renamed_modules_of_a_head(tmp_path: Path) -> None:
    model, _ = adapted("roberta", "lora")
    capaft.save(model, tmp_path / "adapter")
    fresh = base("roberta")
    fresh.classifier.first = fresh.classifier.dense
    del fresh.classifier.dense
    fresh.classifier.__dict__["dense"] = fresh.classifier.first
    adapter = capaft.load(fresh, tmp_path / "adapter", rename={"classifier.dense": "classifier.first"})
    assert [site.module for site in adapter.plan.head.parameters][1:] == ["classifier.first", "classifier.out_proj"]
    assert torch.equal(tiny.logits(fresh), tiny.logits(model))


def test_a_file_says_what_it_holds_of_the_head(tmp_path: Path) -> None:
    model, _ = adapted("roberta", "lora")
    capaft.save(model, tmp_path / "adapter")
    file = read(tmp_path / "adapter")
    assert file.header.head.parameters == {
        "classifier.dense.bias": (32, 1),
        "classifier.dense.weight": (32, 32),
        "classifier.out_proj.weight": (3, 32),
    }
    assert file.header.head.k == 16
    assert f"head      16 coefficients each for {', '.join(MOVED['roberta'])}" in describe_file(file)
    model, _ = adapted("gpt2", "lora", head_mode="frozen")
    capaft.save(model, tmp_path / "adapter")
    assert "head      frozen: score.weight" in describe_file(read(tmp_path / "adapter"))


# Counting


def count_head(model: nn.Module, plan: Plan) -> int:
    """Count the trainable parameters of a head as a caller would."""
    return plan.head.count + sum(stored(model, name).numel() for name in plan.trained)


@everywhere
def test_the_adapters_numbers_and_the_heads_are_counted_apart(kind: str, method: str) -> None:
    model, stack = base(kind), parse_stack(method, **STACKS[method])
    without = make_plan(model, stack, Placement(seed=SEED))
    placing = {key: value for key, value in options(kind, method).items() if key not in STACKS[method]}
    plan = make_plan(model, stack, Placement(**placing))
    adapter = capaft.attach(model, stack, **placing)
    assert count_trainable(plan) == count_trainable(without)
    assert plan.bounds() == without.bounds() | {"head": (len(MOVED[kind]) * K[kind],) * 2}
    trained = sum(parameter.numel() for parameter in adapter.trained(model).values())
    assert trained == count_trainable(plan) + count_head(model, plan)
    assert plan.head.count == adapter.role_parameters["head"].numel()


def test_a_budget_is_the_adapters_alone() -> None:
    model, stack = base("roberta"), parse_stack("nola", k=9)
    placement = Placement(head=names_of_head(model), head_mode="nola", head_k=16, seed=SEED)
    for budget in (8, 100, 1000):
        alone = fit_to_budget(model, stack, budget, Placement(seed=SEED))
        assert fit_to_budget(model, stack, budget, placement) == alone


def test_small_heads_and_whole_ones_are_trained_as_they_are() -> None:
    model = base("bert")
    names = names_of_head(model)
    whole, small = (Placement(head=names, head_mode="nola", head_k=k) for k in (96, 95))
    assert make_plan(model, parse_stack("lora"), whole) == make_plan(model, parse_stack("lora"), Placement(head=names))
    assert make_plan(model, parse_stack("lora"), small).trained == ("classifier.bias",)
    saved = make_plan(
        model,
        parse_stack("lora"),
        Placement(head=names, head_mode="nola", head_k=4, modules_to_save="pooler,classifier"),
    )
    assert saved.trained == ("classifier.bias", "classifier.weight", "pooler.dense.bias", "pooler.dense.weight")
    assert saved.head.parameters == ()
    placement = Placement(head=names, head_mode="frozen", modules_to_save="pooler")
    frozen = make_plan(model, parse_stack("head"), placement)
    assert frozen.trained == ("pooler.dense.bias", "pooler.dense.weight")


def test_modules_to_save_beside_coefficients(tmp_path: Path) -> None:
    model, adapter = adapted("bert", "lora", modules_to_save="re:embeddings.LayerNorm")
    model.bert.embeddings.LayerNorm.weight.data.add_(0.1)
    assert adapter.plan.trained == ("classifier.bias", "embeddings.LayerNorm.bias", "embeddings.LayerNorm.weight")
    capaft.save(model, tmp_path / "adapter")
    fresh = base("bert")
    assert capaft.load(fresh, tmp_path / "adapter").plan == adapter.plan
    assert torch.equal(tiny.logits(fresh), tiny.logits(model))


# Copying, checkpointing, compiling, casting


def copies(model: Any) -> list[Any]:
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    return [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(stream, weights_only=False)]


def test_copies_are_independent() -> None:
    model, _ = adapted()
    logits = tiny.logits(model)
    for twin in copies(model):
        assert torch.equal(tiny.logits(twin), logits)
        get_adapter(twin).role_parameters["head"].data.zero_()
        assert not torch.equal(tiny.logits(twin), logits)
        assert torch.equal(tiny.logits(model), logits)
        capaft.detach(twin)
        assert type(twin.classifier.dense) is nn.Linear


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated")
@pytest.mark.parametrize("use_reentrant", [False, True])
@some
def test_checkpointing_changes_nothing(kind: str, method: str, use_reentrant: bool) -> None:
    results = []
    for checkpointing in (False, True):
        model, adapter = adapted(kind, method)
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
            model.enable_input_require_grads()
        output = tiny.logits(model.train())
        output.square().sum().backward()
        results.append([output, *(parameter.grad for parameter in adapter.role_parameters.values())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


@some
def test_a_head_inside_a_checkpoint(kind: str, method: str) -> None:
    """Recomputed in the backward pass, it uses the coefficients of its forward pass."""
    gradients = []
    for checkpointed in (False, True):
        model, adapter = adapted(kind, method)
        module = model.score if kind == "gpt2" else model.classifier
        forward = module.forward
        if checkpointed:
            module.forward = partial(torch.utils.checkpoint.checkpoint, forward, use_reentrant=False)
        output = tiny.logits(model)
        if checkpointed:
            adapter.role_parameters["head"].data.add_(1)
        output.square().sum().backward()
        gradients.append(adapter.role_parameters["head"].grad)
    torch.testing.assert_close(*gradients)


@some
def test_compiled_equals_eager(kind: str, method: str) -> None:
    torch._dynamo.reset()
    (model, adapter), (eager, twin) = adapted(kind, method), adapted(kind, method)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for seed in range(2):
        logits, expected = tiny.logits(compiled), tiny.logits(eager)
        torch.testing.assert_close(logits, expected)
        logits.square().sum().backward()
        expected.square().sum().backward()
        torch.testing.assert_close(adapter.role_parameters["head"].grad, twin.role_parameters["head"].grad)
        for module in (adapter, twin):
            tiny.scramble(module, seed=seed + 1).zero_grad()


@pytest.mark.parametrize("edit", ["data", "step"])
def test_edited_coefficients_are_seen_without_a_forward_of_the_whole(edit: str) -> None:
    model, adapter = adapted("roberta", "head")
    hidden = torch.randn(2, 8, 32)
    with torch.no_grad():
        before = model.classifier(hidden)
        assert torch.equal(model.classifier(hidden), before)
    if edit == "data":
        adapter.role_parameters["head"].data.mul_(2)
    else:
        adapter.role_parameters["head"].grad = torch.ones_like(adapter.role_parameters["head"])
        torch.optim.AdamW([adapter.role_parameters["head"]], lr=0.5).step()
    expected = {
        name: stored(base("roberta"), name).double() + m.view_as(stored(base("roberta"), name))
        for name, m in moves(adapter).items()
    }
    assert distance(model.classifier.dense.weight, expected["classifier.dense.weight"]) < 1e-6
    with torch.no_grad():
        assert not torch.equal(model.classifier(hidden), before)
    model.classifier(hidden).square().sum().backward()
    assert adapter.role_parameters["head"].grad is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_casting_a_model_leaves_the_coefficients_alone(dtype: torch.dtype) -> None:
    model, adapter = adapted()
    precise, before = tiny.logits(model), adapter.role_parameters["head"].detach().clone()
    model.to(dtype)
    assert torch.equal(adapter.role_parameters["head"], before)
    assert adapter.role_parameters["head"].dtype == torch.float32
    assert heads(model)["classifier.dense.weight"].dtype == dtype
    assert distance(tiny.logits(model), precise) < 3e-2


def test_autocast() -> None:
    model, adapter = adapted("roberta", "head")
    precise = tiny.logits(model)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = tiny.logits(model)
    assert distance(rounded, precise) < 3e-2
    rounded.float().square().sum().backward()
    assert adapter.role_parameters["head"].grad.dtype == torch.float32


def test_several_adapters_that_move_one_head() -> None:
    model = base("roberta")
    before, without = state(model), tiny.logits(model)
    first = tiny.scramble(capaft.attach(model, "nola", name="first", **options("roberta", "nola")))
    alone = tiny.logits(model)
    moved = options("roberta", "head") | {"head_k": 5, "seed": 9, "head": ["classifier.dense.weight"]}
    second = tiny.scramble(capaft.attach(model, "head", name="second", **moved), seed=1)
    assert torch.equal(tiny.logits(model), alone)
    capaft.switch(model, ["first", "second"])
    one, two = (
        moves(first),
        torch.from_numpy(
            naive.basis("hadamard", 9, (("classifier.dense", 32 * 32),), "head:weight", 5)["classifier.dense"]
        ),
    )
    both = stored(base("roberta"), "classifier.dense.weight").double().flatten()
    both = both + one["classifier.dense.weight"] + two @ second.role_parameters["head"][0].double()
    assert distance(model.classifier.dense.weight.flatten(), both) < 1e-6
    together = tiny.logits(model)
    merged = copy.deepcopy(model)
    assert capaft.merge(merged) == len(first.plan.sites)
    assert distance(tiny.logits(merged), together) < 1e-5
    capaft.switch(model, "first")
    assert torch.equal(tiny.logits(model), alone)
    with capaft.disabled(model):
        assert torch.equal(tiny.logits(model), without)
    capaft.switch(model, "first", "second")
    capaft.detach(model, "first")
    assert not torch.equal(tiny.logits(model), without)
    capaft.detach(model, "second")
    assert state(model) == before


def test_a_parameter_that_each_trains_is_in_the_model_once() -> None:
    model = base("roberta")
    for name, seed in (("first", 1), ("second", 9)):
        capaft.attach(model, "lora", name=name, **(options("roberta", "lora") | {"seed": seed}))
    with pytest.raises(UsageError, match=r"first and second each have a classifier\.out_proj\.bias of their own"):
        capaft.switch(model, ["first", "second"])
    assert [adapter.enabled for adapter in capaft.adapters(model).values()] == [True, False]


def test_a_site_and_a_parameter_of_the_head_in_one_module() -> None:
    """`bitfit` on a bias, coefficients for the weight beside it."""
    model = tiny.bert()
    logits = tiny.logits(model)
    adapter = capaft.attach(
        model, "bitfit", head=["bert.pooler.dense.weight"], head_mode="nola", head_k=10, targets="pooler.dense"
    )
    assert [site.path for _, site in adapter.plan.placed] == ["pooler.dense", "pooler.dense"]
    assert torch.equal(tiny.logits(model), logits)
    tiny.train(model, 2)
    trained = tiny.logits(model)
    assert capaft.merge(model) == 1
    assert distance(tiny.logits(model), trained) < 1e-5


def test_a_head_that_is_not_called_is_named() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.spare = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.query(x)

    for method in ("lora", "head"):
        model = Idle()
        capaft.attach(model, method, head=["spare.weight"], head_mode="nola", head_k=4)
        with pytest.warns(UserWarning, match="adapted but not called in the first forward: spare"):
            model(torch.ones(2, 8))


@pytest.mark.parametrize("shape", [(4, 3, 2, 2), (12,), ()], ids=str)
def test_any_shape_of_parameter(shape: tuple[int, ...], tmp_path: Path) -> None:
    class Free(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.free = nn.Linear(8, 8), nn.Parameter(torch.arange(1.0, 1 + np.prod(shape)).view(shape))

        def forward(self, x: Tensor) -> Tensor:
            return self.query(x).sum() * self.free

    for mode, method in (("nola", "lora"), ("frozen", "lora")):
        model = Free()
        adapter = tiny.scramble(capaft.attach(model, method, head=["free"], head_mode=mode, head_k=5))
        capaft.save(model, tmp_path / "adapter")
        fresh = Free()
        fresh.query.load_state_dict({name: model.query.state_dict()[name] for name in ("weight", "bias")})
        capaft.load(fresh, tmp_path / "adapter")
        x = torch.ones(2, 8)
        assert torch.equal(fresh(x), model(x))
        if adapter.plan.head.moved:
            change = naive.basis("hadamard", 0, (("", 12 * 4 if len(shape) > 1 else 12),), "head:free", 5)[""]
            change = torch.from_numpy(change) @ adapter.role_parameters["head"][0].double()
            assert distance(model.free, Free().free + change.view(shape)) < 1e-6


# Refusals


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.one, self.two = (nn.Linear(8, 8) for _ in range(3))
        self.two.weight = self.one.weight


class Quantised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.one = nn.Linear(8, 8), nn.Linear(8, 8)
        self.one.weight = nn.Parameter(torch.ones(8, 8, dtype=torch.int8), requires_grad=False)


@pytest.mark.parametrize(
    ("model", "method", "options", "message"),
    [
        (tiny.bert, "lora", {"head_mode": "half"}, "head_mode must be one of full, nola, frozen, got half"),
        (tiny.bert, "lora", {"head_k": 0, "head_mode": "nola"}, "head_k must be a whole number of at least 1, got 0"),
        (tiny.bert, "lora", {"head_k": 2.0}, "head_k must be a whole number"),
        (tiny.bert, "full", {"head_mode": "nola"}, "head_mode nola cannot be used with method full"),
        (tiny.bert, "head", {"head_mode": "frozen"}, "head_mode frozen leaves method head nothing to train"),
        (tiny.bert, "lora", {"head": ["classifier.wait"], "head_mode": "nola"}, "no parameter classifier.wait"),
        (
            tiny.bert,
            "lora",
            {"head": ["bert.encoder.layer.0.attention.self.query.weight"], "head_mode": "nola", "head_k": 4},
            "query is both adapted and part of the head; leave it out of one",
        ),
        (
            Tied,
            "lora",
            {"head": ["one.weight"], "head_mode": "nola", "head_k": 4},
            r"one\.weight and two\.weight are one tied weight; choose head_mode full, or load it untied",
        ),
        (
            tiny.gpt2,
            "lora",
            {"head": ["transformer.wte.weight"], "head_mode": "nola", "head_k": 4},
            r"transformer\.wte\.weight and lm_head\.weight are one tied weight",
        ),
        (
            Quantised,
            "lora",
            {"head": ["one.weight"], "head_mode": "nola", "head_k": 4},
            r"one\.weight is quantised and cannot have coefficients; choose head_mode frozen",
        ),
    ],
)
def test_what_cannot_be_planned(model: Callable[[], nn.Module], method: str, options: Any, message: str) -> None:
    instance = model()
    with pytest.raises(UsageError, match=message) as error:
        capaft.attach(instance, method, **({"head": ["classifier.weight"]} if model is tiny.bert else {}) | options)
    assert "\n" not in str(error.value)
    assert not capaft.adapters(instance)
    frozen = options | {"head_mode": "frozen"}
    if model in (Tied, Quantised):
        assert make_plan(instance, parse_stack(method), Placement(**frozen)).head.moved == ()


def test_a_weight_tied_later_cannot_be_merged() -> None:
    model, _ = adapted("roberta", "head")
    model.roberta.encoder.layer[0].attention.output.dense.weight = model.classifier.dense._parameters["weight"]
    with pytest.raises(UsageError, match=r"classifier\.dense\.weight are one tied weight"):
        capaft.merge(model)


def test_the_basis_group_leaves_no_coefficient_of_a_head_without_an_entry() -> None:
    assert adapted("roberta", "nola", basis="group", head_k=30)[1].plan.head.basis == "group"


def test_a_head_that_accelerate_has_put_on_disk(tmp_path: Path) -> None:
    base("roberta").save_pretrained(tmp_path / "model")
    places = {"roberta": "cpu", "classifier.dense": "disk", "classifier.dropout": "cpu", "classifier.out_proj": "cpu"}
    offloaded = RobertaForSequenceClassification.from_pretrained(
        tmp_path / "model", device_map=places, offload_folder=tmp_path / "offload"
    ).eval()
    assert offloaded.classifier.dense.weight.is_meta
    model, _ = adapted("roberta", "lora")
    capaft.save(model, tmp_path / "adapter", base=Origin("tiny"))
    capaft.load(offloaded, tmp_path / "adapter")
    assert torch.equal(tiny.logits(offloaded), tiny.logits(model))
    capaft.save(offloaded, tmp_path / "again", base=Origin("tiny"))
    assert (tmp_path / "again").read_bytes() == (tmp_path / "adapter").read_bytes()
    with pytest.raises(UsageError, match=r"classifier\.dense is offloaded"):
        capaft.merge(offloaded)
    capaft.detach(offloaded)
    assert type(offloaded.classifier.dense) is nn.Linear
