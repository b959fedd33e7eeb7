from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

import capaft
from capaft.adapter.install import attach_plan
from capaft.adapter.plan import make_plan
from capaft.methods.stack import parse_stack

peft = pytest.importorskip("peft")

TUNERS: dict[str, Callable[[], Any]] = {
    "lora": lambda: peft.LoraConfig(target_modules=["query", "value"]),
    "lora on all": lambda: peft.LoraConfig(target_modules="all-linear", task_type="SEQ_CLS"),
    "dora": lambda: peft.LoraConfig(target_modules=["query"], use_dora=True),
    "lora on parameters": lambda: peft.LoraConfig(target_modules=[], target_parameters=["query.weight"]),
    "ia3": lambda: peft.IA3Config(target_modules=["key", "value"], feedforward_modules=[]),
    "loha": lambda: peft.LoHaConfig(target_modules=["query"]),
    "oft": lambda: peft.OFTConfig(target_modules=["query"], r=4, oft_block_size=0),
    "vera": lambda: peft.VeraConfig(target_modules=["query"], r=2),
    "norms": lambda: peft.LNTuningConfig(target_modules=["LayerNorm"]),
    "prompt": lambda: peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2),
    "prefix": lambda: peft.PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2),
}
INJECTED = [name for name in TUNERS if name not in ("prompt", "prefix", "vera")]


def state(model: Any) -> dict[str, tuple[bool, bool, bytes]]:
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: (t.requires_grad, t.is_leaf, t.detach().numpy().tobytes()) for name, t in named}


def modules(model: nn.Module) -> list[tuple[str, type]]:
    return [(name, type(module)) for name, module in model.named_modules()]


def refused(action: Callable[[], Any], model: Any, words: str) -> None:
    """The action must raise one line, and change nothing."""
    before, names, flag = state(model), modules(model), model._hf_peft_config_loaded
    with pytest.raises(capaft.UsageError, match=words) as refusal:
        action()
    assert "\n" not in str(refusal.value)
    assert (state(model), modules(model), model._hf_peft_config_loaded) == (before, names, flag)


@pytest.mark.parametrize("tuner", TUNERS)
def test_a_model_of_peft_gets_no_adapter(tuner: str) -> None:
    model = peft.get_peft_model(tiny.bert(), TUNERS[tuner]())
    refused(lambda: capaft.attach(model, "lora", rank=2), model, "adapter of PEFT around it")
    if tuner in INJECTED:
        inner = model.get_base_model()
        refused(lambda: capaft.attach(inner, "lora", rank=2), inner, "adapter of PEFT at .*merge_and_unload")
        refused(lambda: capaft.attach(inner, "bitfit"), inner, "adapter of PEFT at")


@pytest.mark.parametrize("tuner", INJECTED)
def test_a_model_with_injected_layers_gets_no_adapter(tuner: str) -> None:
    model = peft.inject_adapter_in_model(TUNERS[tuner](), tiny.bert())
    refused(lambda: capaft.attach(model, "lora", rank=2), model, "adapter of PEFT at")
    model = tiny.bert()
    plan = make_plan(model, parse_stack("lora", rank=2))
    model.add_adapter(TUNERS[tuner]())
    refused(lambda: attach_plan(model, plan), model, "adapter of PEFT at")


def test_a_file_is_not_loaded_on_a_model_of_peft(tmp_path: Any) -> None:
    model = tiny.bert()
    capaft.attach(model, "lora", rank=2)
    capaft.save(model, tmp_path / "a.safetensors")
    capaft.detach(model)
    model.add_adapter(TUNERS["lora"]())
    refused(lambda: capaft.load(model, tmp_path / "a.safetensors"), model, "adapter of PEFT")


def test_peft_is_welcome_once_it_is_gone() -> None:
    base = tiny.bert()
    expected = tiny.logits(base)
    model = peft.get_peft_model(base, TUNERS["lora"]()).unload()
    capaft.attach(model, "lora", rank=2)
    assert torch.equal(tiny.logits(model), expected)
    capaft.detach(model)
    wrapped = peft.get_peft_model(model, TUNERS["lora"]())
    assert torch.equal(tiny.logits(wrapped), expected)


@pytest.mark.parametrize("tuner", TUNERS)
def test_an_adapted_model_refuses_peft(tuner: str) -> None:
    model = tiny.bert()
    tiny.scramble(capaft.attach(model, "lora+nola", rank=2, k=8))
    logits = tiny.logits(model)
    words = "PEFT cannot be put on a model that has a capaft adapter"
    refused(lambda: peft.get_peft_model(model, TUNERS[tuner]()), model, words)
    if tuner in INJECTED:
        refused(lambda: peft.inject_adapter_in_model(TUNERS[tuner](), model), model, words)
        refused(lambda: model.add_adapter(TUNERS[tuner]()), model, words)
    twin = copy.deepcopy(model)
    refused(lambda: peft.get_peft_model(twin, TUNERS[tuner]()), twin, words)
    assert torch.equal(tiny.logits(model), logits)
    capaft.merge(model)
    assert torch.allclose(tiny.logits(model), logits, atol=1e-5)


class Quantised(nn.Module):
    """A layer that a conversion puts in the place of a linear one."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.codes = layer.weight.detach()

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.codes.T


def test_an_adapted_layer_is_not_replaced() -> None:
    model = tiny.bert()
    capaft.attach(model, "lora", rank=2, targets="query")
    attention = model.bert.encoder.layer[0].attention.self

    def replace() -> None:
        attention.query = Quantised(attention.query)

    refused(replace, model, "query .Linear. has a capaft adapter, which its replacement by Quantised would lose")
    refused(lambda: setattr(model, "bert", tiny.bert().bert), model, "bert .BertModel. has a capaft adapter")
    attention.key = nn.Linear(32, 32)  # Not adapted.


def replaced_behind_its_back() -> Any:
    model = tiny.bert()
    capaft.attach(model, "lora", rank=2, targets="query")
    attention = model.bert.encoder.layer[1].attention.self
    attention._modules["query"] = Quantised(attention.query)
    return model


@pytest.mark.parametrize("action", [tiny.logits, capaft.merge, capaft.detach])
def test_a_layer_replaced_behind_its_back_is_noticed(action: Callable[[Any], Any]) -> None:
    model = replaced_behind_its_back()
    refused(lambda: action(model), model, r"layer\.1\.attention\.self\.query has been replaced or wrapped")


def test_dynamic_quantisation_is_noticed() -> None:
    model = tiny.bert()
    capaft.attach(model, "lora", rank=2)
    torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, inplace=True)
    with pytest.raises(capaft.UsageError, match="has been replaced or wrapped"):
        tiny.logits(model)


def test_wrappers_that_keep_the_layer_are_welcome() -> None:
    model = tiny.bert()
    tiny.scramble(capaft.attach(model, "lora", rank=2, targets="query"))
    logits = tiny.logits(model)
    layers = model.bert.encoder.layer
    layers[0] = checkpoint_wrapper(layers[0])
    attention = layers[1].attention.self
    attention.query = torch.compile(attention.query, backend="eager")
    assert torch.allclose(tiny.logits(model), logits, atol=1e-6)
    assert nn.parallel.DataParallel(model).module is model
    layers[0] = layers[0]._checkpoint_wrapped_module
    attention.query = attention.query._orig_mod
    capaft.merge(model)
    assert torch.allclose(tiny.logits(model), logits, atol=1e-5)
