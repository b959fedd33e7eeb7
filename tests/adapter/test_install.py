"""What an adapter leaves in a model: nothing, after `detach` and after an installation that fails."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from itertools import permutations
from typing import Any

import pytest
import tiny
import torch
from tiny_quantised import Unnamed, quantise
from torch import nn

import capaft
from capaft.adapter.hooks import SiteAdapter
from capaft.support.errors import UsageError

HEAD = ["classifier.weight", "classifier.bias"]
BESIDE: list[tuple[str, dict[str, Any]]] = [
    ("lora", {"rank": 2, "head": HEAD}),
    ("prefix", {"prefix_length": 2}),
    ("lora", {"rank": 2, "head": HEAD, "labels": 5, "targets": "query"}),
]


def bert() -> Any:
    """A model that trains, with running statistics, whose configuration no other test shares."""
    model = tiny.bert()
    model.config = copy.deepcopy(model.config)
    model.bert.encoder.layer[1].output.norm = nn.BatchNorm1d(32)
    return model.train()


def snapshot(model: Any) -> dict[str, Any]:
    """All that an adapter may touch, by the path of the module."""
    values: dict[str, Any] = {
        path: (
            type(module),
            {name: len(value) if "hooks" in name and value else None for name, value in vars(module).items()},
            module.training,
            list(module._modules),
        )
        for path, module in model.named_modules()
    }
    values |= {
        f"{n}.": (id(p), p.requires_grad, p.detach().cpu().numpy().tobytes()) for n, p in model.named_parameters()
    }
    config = model.config
    labels = (config.id2label, config.label2id, config.problem_type, config._attn_implementation)
    return values | {"configuration": copy.deepcopy(labels), "active": active(model)}


def active(model: nn.Module) -> list[tuple[str, bool]]:
    return [(name, adapter.enabled) for name, adapter in capaft.adapters(model).items()]


@pytest.mark.parametrize("order", permutations(range(3)))
def test_adapters_leave_in_any_order(order: tuple[int, ...]) -> None:
    model = bert()
    before = snapshot(model)
    for index, (method, options) in enumerate(BESIDE):
        capaft.attach(model, method, name=f"a{index}", **options)
        model.eval()
        tiny.logits(model)
        model.train()
    capaft.switch(model, f"a{order[-1]}")
    for index in order:
        capaft.detach(model, f"a{index}")
    assert snapshot(model) == before


class Stubborn(nn.Linear):
    """A layer that takes no hooks."""

    def register_forward_hook(self, *args: Any, **options: Any) -> Any:
        raise RuntimeError("no hooks here")


def refuse_hooks(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last layer that is adapted takes none."""
    model.bert.encoder.layer[1].attention.self.value.__class__ = Stubborn


def interrupt(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C at the third site."""
    install = SiteAdapter.install

    def interrupted(child: SiteAdapter, *args: Any) -> None:
        if child.index == 2:
            raise KeyboardInterrupt
        install(child, *args)

    monkeypatch.setattr(SiteAdapter, "install", interrupted)


def fail_on_warnings(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A warning is an error, as under `python -W error`."""
    warnings.simplefilter("error")


def refuse_state_hooks(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last hook of all is refused."""
    monkeypatch.setattr(type(model), "_register_state_dict_hook", Stubborn.register_forward_hook)


@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("fault", [refuse_hooks, interrupt, fail_on_warnings, refuse_state_hooks])
def test_an_installation_that_fails_is_taken_back(
    fault: Callable[..., None], second: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = bert()
    if second:
        capaft.attach(model, "lora", name="first", rank=2, head=HEAD)
        model.bert.pooler.dense.bias.requires_grad_(True)
    options: dict[str, Any] = {"rank": 2, "head": HEAD, "targets": "query,value,word_embeddings", "dropout": 0.1}
    with monkeypatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fault(model, patch)
        before = snapshot(model)
        with pytest.raises((RuntimeError, KeyboardInterrupt, UserWarning)):
            capaft.attach(model, "lora", **options)
    assert snapshot(model) == before
    model.bert.encoder.layer[1].attention.self.value.__class__ = (
        nn.Linear if not second else type(model.bert.encoder.layer[1].attention.self.value)
    )
    if fault is not refuse_hooks:
        with pytest.warns(UserWarning, match="no dropout"):
            capaft.attach(model, "lora", **options)
        tiny.logits(model).sum().backward()


def test_the_models_own_head_is_frozen_while_no_adapter_is_active() -> None:
    model = bert()
    capaft.attach(model, "lora", rank=2, head=HEAD, modules_to_save="pooler")
    trained = set(capaft.adapters(model)["default"].trained(model).values())
    assert {p for p in model.parameters() if p.requires_grad} == trained
    with capaft.disabled(model):
        assert not model.classifier.weight.requires_grad
    capaft.switch(model, [])
    assert not any(p.requires_grad for p in model.parameters())
    capaft.detach(model)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda adapter: pickle.loads(pickle.dumps(adapter))])
def test_an_adapter_alone_does_not_hold_its_model(duplicate: Callable[[Any], Any]) -> None:
    model = bert()
    adapter = capaft.attach(model, "lora", rank=2, head=HEAD)
    capaft.attach(model, "lora", name="second", rank=2, head=HEAD)
    capaft.switch(model, "second")

    class Search(pickle.Pickler):
        """Objects of the model that pickling meets."""

        met: list[object]

        def persistent_id(self, value: object) -> None:
            if value is model or value in (model.bert, model.config):
                self.met.append(value)

    search = Search(io.BytesIO())
    search.met = []
    search.dump(adapter)
    assert not search.met
    twin = duplicate(adapter)
    assert all(torch.equal(one, other) for one, other in zip(adapter.parameters(), twin.parameters(), strict=True))
    capaft.detach(duplicate(model), "default")
    assert list(capaft.adapters(model)) == ["default", "second"]


def test_a_new_head_cannot_take_the_place_of_codes() -> None:
    model = quantise(bert(), Unnamed, ends="classifier")
    before = snapshot(model)
    with pytest.raises(
        UsageError, match=r"classifier\.\w+ is quantised and cannot be replaced by .* load it unquantised$"
    ):
        capaft.attach(model, "lora", rank=2, head=HEAD, head_mode="frozen", labels=5)
    assert snapshot(model) == before


def test_a_head_that_is_gone_is_missed_by_name() -> None:
    model = bert()
    adapter = capaft.attach(model, "lora", rank=2, head=HEAD)
    head, model.classifier = model.classifier, nn.Identity()
    for change in (capaft.detach, capaft.merge, lambda model: capaft.switch(model, [])):
        with pytest.raises(UsageError, match=r"^classifier\.bias has been replaced or removed since .*; put it back"):
            change(model)
        assert adapter.enabled
    model.classifier = head
    capaft.detach(model)
    assert torch.equal(tiny.logits(model), tiny.logits(bert()))


def test_adapters_that_would_not_know_of_each_other_are_refused() -> None:
    model = bert()
    wrapped = torch.compile(model, backend="eager")
    capaft.attach(wrapped, "lora", rank=2)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"a wrapper around it, .*; attach both to the same module$"):
        capaft.attach(model, "lora", name="second", rank=2)
    assert capaft.detach(wrapped)  # type: ignore[arg-type]
    capaft.attach(model.bert, "lora", rank=2)
    with pytest.raises(UsageError, match="attached to a part of it"):
        capaft.attach(model, "lora", name="second", rank=2)
    capaft.detach(model.bert)
    assert all(parameter.requires_grad for parameter in model.parameters())
    # The other way round the wrapper is looked through.
    capaft.attach(model, "lora", rank=2)
    capaft.attach(wrapped, "lora", name="second", rank=2)  # type: ignore[arg-type]
    assert list(capaft.adapters(model)) == ["default", "second"]
