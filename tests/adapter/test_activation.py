"""Several adapters on one model: each with its head, its labels and whatever else it trains."""

from __future__ import annotations

import copy
import io
import pickle
import random
import warnings
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import capaft
from capaft.support.errors import UsageError

HEAD = ["classifier.weight", "classifier.bias"]
OPTIONS: dict[str, Any] = {"rank": 2, "head": HEAD}


def bert() -> Any:
    """A model whose configuration no other test shares."""
    model = tiny.bert()
    model.config = copy.deepcopy(model.config)
    model.config.problem_type = None
    return model


def trained(adapter: Any, model: Any) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in adapter.trained(model).items()}


def state(model: Any) -> dict[str, Any]:
    """All that must be as it was after the last adapter is off."""
    values: dict[str, Any] = {n: (p.requires_grad, p.detach().numpy().tobytes()) for n, p in model.named_parameters()}
    config = model.config
    labels = (dict(config.id2label), dict(config.label2id), config.problem_type, config.num_labels, model.num_labels)
    return values | {"labels": labels, "names": [*vars(model)], "outputs": model.classifier.out_features}


def tenants(count: int, model: Any) -> None:
    """Adapters t0, t1, ... with 2, 3, 4, 5 labels in turn, trained a little."""
    for index in range(count):
        labels = [f"t{index}-{label}" for label in range(2 + index % 4)]
        tiny.scramble(capaft.attach(model, "lora", name=f"t{index}", labels=labels, seed=index, **OPTIONS), seed=index)
        capaft.switch(model, f"t{index}")
        tiny.train(model, 1, seed=index)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Files of six tenants, each trained alone."""
    model, folder = bert(), tmp_path_factory.mktemp("tenants")
    tenants(6, model)
    for index in range(6):
        capaft.save(model, folder / f"t{index}", name=f"t{index}")
    return [folder / f"t{index}" for index in range(6)]


def alone(file: Path) -> Tensor:
    model = bert()
    capaft.load(model, file)
    return tiny.logits(model).detach()


@pytest.mark.parametrize("seed", range(5))
def test_tenants_in_any_order(seed: int, files: list[Path], tmp_path: Path) -> None:
    model, chance = bert(), random.Random(seed)
    before, base = state(model), tiny.logits(model)
    expected = {f"t{index}": alone(file) for index, file in enumerate(files)}
    for _ in range(30):
        present = list(capaft.adapters(model))
        name = f"t{chance.randrange(6)}"
        action = chance.choice(["switch", "save", "detach", "disabled", "cycle"]) if name in present else "load"
        if action == "load":
            capaft.load(model, files[int(name[1:])], name=name)
        elif action == "switch":
            capaft.switch(model, [name])
            assert torch.equal(tiny.logits(model), expected[name])
            assert list(model.config.id2label.values()) == [f"{name}-{i}" for i in range(model.num_labels)]
        elif action == "save":
            capaft.save(model, tmp_path / name, name=name)
            assert (tmp_path / name).read_bytes() == files[int(name[1:])].read_bytes()
        elif action == "detach":
            capaft.detach(model, name)
        elif action == "disabled":
            with capaft.disabled(model):
                assert torch.equal(tiny.logits(model), base)
        else:
            capaft.switch(model, [])
            assert torch.equal(tiny.logits(model), base)
    for name in list(capaft.adapters(model)):
        capaft.detach(model, name)
    assert state(model) == before


def test_the_first_stays_active_and_none_takes_its_place() -> None:
    model = bert()
    base = tiny.logits(model)
    first, second = (tiny.scramble(capaft.attach(model, "lora", rank=2, name=name)) for name in ("first", "second"))
    assert (first.enabled, second.enabled) == (True, False)
    capaft.detach(model, "first")
    assert torch.equal(tiny.logits(model), base)
    assert capaft.attach(model, "ia3", name="third").enabled
    with capaft.disabled(model):
        capaft.attach(model, "lora", rank=2, name="fourth")
    assert [name for name, adapter in capaft.adapters(model).items() if adapter.enabled] == ["third"]


def test_training_one_leaves_the_others_alone() -> None:
    model = bert()
    tenants(3, model)
    adapters = capaft.adapters(model)
    # One optimizer over all parameters, made before the switch, trains whoever is active.
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    every = {id(parameter) for name, adapter in adapters.items() for parameter in adapter.trained(model).values()}
    assert every <= {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for name in ("t0", "t2", "t0"):
        before = {other: trained(adapter, model) for other, adapter in adapters.items()}
        capaft.switch(model, name)
        assert {id(p) for p in model.parameters() if p.requires_grad} == set(
            map(id, adapters[name].trained(model).values())
        )
        optimizer.zero_grad()
        tiny.logits(model).square().sum().backward()
        optimizer.step()
        for other, adapter in adapters.items():
            changed = [not torch.equal(p, before[other][key]) for key, p in adapter.trained(model).items()]
            assert all(changed) if other == name else not any(changed)


def test_each_head_is_held_once() -> None:
    model = bert()
    tenants(4, model)
    capaft.switch(model, "t1")
    shared = [parameter for adapter in capaft.adapters(model).values() for parameter in adapter.trained(model).values()]
    assert len({parameter.data_ptr() for parameter in (*shared, *model.parameters())}) == len([*model.parameters()])
    assert sum(parameter.shape[-1] == 32 and "classifier" in name for name, parameter in model.named_parameters()) == 4


def test_flags_that_a_caller_sets_come_back() -> None:
    model = bert()
    adapter = capaft.attach(model, "lora", rank=2)
    adapter.role_parameters["down"].requires_grad_(False)
    capaft.attach(model, "lora", rank=2, name="other")
    capaft.switch(model, "other")
    capaft.switch(model, "default")
    assert [parameter.requires_grad for parameter in adapter.role_parameters.values()] == [False, True]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4"])
def test_labels_travel_in_the_file(dtype: Any, tmp_path: Path) -> None:
    model = bert()
    capaft.attach(model, "lora", labels=["a", "b", "c", "d", "e"], **OPTIONS)
    tiny.train(model, 1)
    model.config.problem_type = "multi_label_classification"
    capaft.save(model, tmp_path / "adapter", dtype=dtype)
    other = bert()
    before = state(other)
    other.config.problem_type = "regression"
    capaft.load(other, tmp_path / "adapter")
    assert list(other.config.id2label.values()) == ["a", "b", "c", "d", "e"]
    assert other.config.problem_type == "multi_label_classification"
    other(input_ids=tiny.IDS, labels=torch.ones(2, 5)).loss.backward()
    if dtype == "float32":
        assert torch.equal(tiny.logits(other), tiny.logits(model))
        capaft.save(other, tmp_path / "again")
        assert (tmp_path / "again").read_bytes() == (tmp_path / "adapter").read_bytes()
    other.config.id2label[0] = "renamed"
    with capaft.disabled(other):
        assert other.config.problem_type == "regression"
    assert other.config.id2label[0] == "renamed"
    capaft.detach(other)
    other.config.problem_type = None
    assert state(other) == before


@pytest.mark.parametrize("mode", ["nola", "frozen", "full"])
def test_other_labels_under_every_head(mode: Any, tmp_path: Path) -> None:
    model = bert()
    adapter = capaft.attach(model, "lora", labels=7, head_mode=mode, head_k=20, seed=4, **OPTIONS)
    tiny.train(tiny.scramble(adapter) and model, 1)
    capaft.save(model, tmp_path / "adapter")
    other = bert()
    before, base = state(other), tiny.logits(other)
    capaft.attach(other, "ia3", name="first")
    capaft.load(other, tmp_path / "adapter", name="second")
    assert torch.equal(tiny.logits(other), base)
    capaft.switch(other, "second")
    assert torch.equal(tiny.logits(other), tiny.logits(model))
    expected = tiny.logits(other)
    capaft.detach(other, "first")
    merged = copy.deepcopy(other)
    capaft.merge(merged)
    torch.testing.assert_close(tiny.logits(merged), expected)
    assert (merged.num_labels, merged.classifier.out_features) == (7, 7)
    capaft.detach(other, "second")
    assert state(other) == before


def test_adapters_without_a_common_parameter_act_together() -> None:
    model = bert()
    capaft.attach(model, "lora", name="head", **OPTIONS)
    capaft.attach(model, "lora", name="pooler", rank=2, modules_to_save="pooler")
    capaft.attach(model, "lora", name="rival", labels=2, **OPTIONS)
    capaft.switch(model, ["head", "pooler"])
    assert model.classifier.weight.requires_grad
    assert model.bert.pooler.dense.weight.requires_grad
    for names in (["head", "rival"], ["pooler", "head", "rival"], ["head", "absent"], [3]):
        with pytest.raises(UsageError, match=r"of their own|no adapter named absent|names of adapters, got 3") as error:
            capaft.switch(model, names)  # type: ignore[arg-type]
        assert "\n" not in str(error.value)
        assert [adapter.enabled for adapter in capaft.adapters(model).values()] == [True, True, False]


def test_adapters_of_other_labels_do_not_act_together() -> None:
    model = bert()
    capaft.attach(model, "lora", rank=2, name="one", head=["classifier.weight"])
    model.config.id2label[0] = "another"
    capaft.attach(model, "lora", rank=2, name="two", head=["classifier.bias"])
    with pytest.raises(UsageError, match="one and two have other labels; switch to one of them"):
        capaft.switch(model, ["one", "two"])


def test_merging_one_of_two_keeps_the_others_head(tmp_path: Path) -> None:
    model = bert()
    frozen = capaft.attach(model, "lora", name="frozen", head_mode="frozen", **OPTIONS)
    tiny.scramble(frozen)
    with torch.no_grad():
        before = model.classifier.weight.clone()
    capaft.attach(model, "lora", name="full", **OPTIONS)
    capaft.switch(model, "full")
    tiny.train(model, 1)
    expected = tiny.logits(model)
    assert capaft.merge(model) == 4
    torch.testing.assert_close(tiny.logits(model), expected)
    capaft.switch(model, "frozen")
    assert torch.equal(model.classifier.weight, before)
    capaft.switch(model, [])
    with pytest.raises(UsageError, match="no adapter is active; name the one to merge: frozen"):
        capaft.merge(model)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("active", ["t0", "t1"])
def test_copies_have_heads_of_their_own(duplicate: Any, active: str) -> None:
    model = bert()
    tenants(2, model)
    capaft.switch(model, active)
    expected, twin = tiny.logits(model), duplicate(model)
    assert torch.equal(tiny.logits(twin), expected)
    tiny.train(twin, 1)
    capaft.detach(twin, "t1")
    capaft.detach(twin, "t0")
    assert torch.equal(tiny.logits(twin), tiny.logits(bert()))
    assert torch.equal(tiny.logits(model), expected)


@pytest.mark.parametrize(("written", "read"), [("t0", "t0"), ("t0", "t1"), ("t1", "t0"), ("t0", "")])
def test_a_state_does_not_depend_on_who_is_active(written: str, read: str) -> None:
    model, other = bert(), bert()
    tenants(2, model)
    for index in range(2):
        labels = [f"t{index}-{label}" for label in range(2 + index % 4)]
        capaft.attach(other, "lora", name=f"t{index}", labels=labels, seed=index, **OPTIONS)
    capaft.switch(model, written)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    capaft.switch(other, [read] if read else [])
    loaded = torch.load(file)
    base = bert().state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in base.items())
    other.load_state_dict(loaded)
    for name in ("t0", "t1"):
        capaft.switch(model, name)
        capaft.switch(other, name)
        assert torch.equal(tiny.logits(other), tiny.logits(model))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        other.load_state_dict(base, strict=False)
    assert [str(warning.message).partition(",")[0] for warning in caught] == [
        f"the loaded state has nothing of the adapter {name}" for name in ("t0", "t1")
    ]


def test_casting_moves_heads_wherever_they_are() -> None:
    model = bert()
    tenants(2, model)
    model.to(torch.bfloat16)
    for names in (["t0"], ["t1"], []):
        capaft.switch(model, names)
        assert tiny.logits(model).dtype == model.classifier.weight.dtype == torch.bfloat16
    assert capaft.adapters(model)["t0"].role_parameters["up"].dtype == torch.float32


def test_a_wrapper_is_looked_through(tmp_path: Path) -> None:
    model = bert()
    tenants(2, model)
    wrapped = torch.compile(model, backend="eager")
    capaft.switch(wrapped, "t0")  # type: ignore[arg-type]
    assert list(capaft.adapters(wrapped)) == ["t0", "t1"]  # type: ignore[arg-type]
    capaft.save(wrapped, tmp_path / "adapter", name="t1")  # type: ignore[arg-type]
    capaft.detach(wrapped, "t0")  # type: ignore[arg-type]
    assert torch.equal(tiny.logits(model), tiny.logits(bert()))


def test_what_distributed_training_would_not_see_is_refused(tmp_path: Path) -> None:
    model = bert()
    tenants(2, model)
    capaft.save(model, tmp_path / "adapter", name="t1")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(model)
        tiny.logits(wrapped).sum().backward()
        with pytest.raises(UsageError, match=r"switch the model inside it \(model\.module\), and wrap it anew"):
            capaft.switch(wrapped, "t0")
        with pytest.raises(UsageError, match="attach to the model inside it"):
            capaft.attach(wrapped, "lora", name="t2")
        with pytest.raises(UsageError, match="load onto the model inside it"):
            capaft.load(wrapped, tmp_path / "adapter", name="t2")
        with capaft.disabled(wrapped):
            assert torch.equal(tiny.logits(wrapped), tiny.logits(bert()))
    finally:
        torch.distributed.destroy_process_group()


def test_tied_and_recurrent_weights_are_swapped_in_every_place() -> None:
    model = tiny.gpt2()
    before = tiny.logits(model)
    capaft.attach(model, "lora", rank=2, modules_to_save="wte")
    tiny.train(model, 1)
    assert model.lm_head.weight is model.transformer.wte.weight
    capaft.detach(model)
    assert model.lm_head.weight is model.transformer.wte.weight
    assert torch.equal(tiny.logits(model), before)

    recurrent = nn.ModuleDict({"memory": nn.LSTM(4, 4), "query": nn.Linear(4, 4)})
    x = torch.ones(3, 1, 4)
    remembered = recurrent["memory"](x)[0]
    adapter = capaft.attach(recurrent, "lora", rank=2, targets="query", modules_to_save="memory")
    with torch.no_grad():
        for parameter in adapter.trained(recurrent).values():
            parameter.add_(0.5)
    assert not torch.equal(recurrent["memory"](x)[0], remembered)
    with capaft.disabled(recurrent):
        assert torch.equal(recurrent["memory"](x)[0], remembered)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": 0}, "labels must be a number, or a list of names that differ, got 0"),
        ({"labels": True}, "labels must be a number"),
        ({"labels": "ab"}, "labels must be a number"),
        ({"labels": ["a", "a"]}, "labels must be a number"),
        ({"labels": [1, 2]}, "labels must be a number"),
        ({"labels": 4, "head": []}, "labels needs the parameters of a head with one output for each label"),
        ({"labels": 4, "head": ["classifier.wait"]}, "no parameter classifier.wait"),
    ],
)
def test_labels_that_cannot_be_used(options: dict[str, Any], message: str) -> None:
    model = bert()
    before = state(model)
    with pytest.raises(UsageError, match=message):
        capaft.attach(model, "lora", **OPTIONS | options)
    assert state(model) == before
