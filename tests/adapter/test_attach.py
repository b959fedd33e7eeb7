"""Attachment under everything people do to a model: copying, compiling, checkpointing, casting, calling parts."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import capaft
from capaft.adapter.activation import get_adapter
from capaft.adapter.module import Adapter
from capaft.adapter.plan import Placement, make_plan
from capaft.methods.stack import parse_stack
from capaft.model.targets import Targets
from capaft.support.errors import UsageError

METHODS = ("lora", "lora+nola+capaboost")


def adapted(model: Any = None, method: str = "lora+nola+capaboost", **options: Any) -> tuple[Any, Adapter]:
    model = tiny.bert() if model is None else model
    return model, tiny.scramble(capaft.attach(model, method, **{"rank": 4, "k": 16} | options))


def gradients(adapter: Adapter) -> list[Tensor]:
    """The gradients since the last call."""
    gradients = [parameter.grad.clone() for parameter in adapter.role_parameters.values()]
    adapter.zero_grad()
    return gradients


def backward(output: Tensor) -> None:
    output.float().square().sum().backward()


def assert_all_close(actual: list[Tensor], expected: list[Tensor], **tolerance: float) -> None:
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, **tolerance)


def fresh_logits(adapter: Adapter) -> Tensor:
    """Logits of a fresh model with the adapter's current parameters."""
    model = tiny.bert()
    other = capaft.attach(model, adapter.plan.stack, seed=adapter.plan.seed, targets=adapter.plan.targets)
    other.load_state_dict(adapter.state_dict())
    with torch.no_grad():
        return tiny.logits(model)


# Copies.


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_is_independent(duplicate: Callable[[Any], Any]) -> None:
    model, adapter = adapted()
    expected = tiny.logits(model)
    twin = duplicate(model)
    assert torch.equal(tiny.logits(twin), expected)
    other = tiny.scramble(get_adapter(twin), seed=1)
    assert not torch.allclose(tiny.logits(twin), expected)
    assert torch.equal(tiny.logits(model), expected)
    backward(tiny.logits(twin))
    assert all(parameter.grad is not None for parameter in other.role_parameters.values())
    assert all(parameter.grad is None for parameter in adapter.role_parameters.values())
    capaft.detach(twin)
    assert torch.equal(tiny.logits(twin), tiny.logits(tiny.bert()))
    assert torch.equal(tiny.logits(model), expected)


def test_the_state_dict_is_the_bases_and_the_numbers() -> None:
    model, _ = adapted()
    base = tiny.bert().state_dict()
    added = {key: value for key, value in model.state_dict().items() if key not in base}
    assert base.keys() <= model.state_dict().keys()
    assert sorted(added) == ["capaft_default.role_parameters.down", "capaft_default.role_parameters.up"]
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    twin, _ = adapted()
    tiny.scramble(get_adapter(twin), seed=1)
    twin.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(tiny.logits(twin), tiny.logits(model))


# Compilation and checkpoints.


def compile_root(model: Any) -> Any:
    return torch.compile(model, fullgraph=True, backend="aot_eager")


def compile_parts(model: Any) -> Any:
    for layer in model.bert.encoder.layer:
        layer.compile(fullgraph=True, backend="aot_eager")
    return model


@pytest.mark.parametrize("compiled", [compile_root, compile_parts])
def test_compiled_equals_eager(compiled: Callable[[Any], Any]) -> None:
    torch._dynamo.reset()
    (model, adapter), (eager, twin) = adapted(), adapted()
    model = compiled(model)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "adapted but not called")
        for seed in range(3):
            for side in (adapter, twin):
                tiny.scramble(side, seed=seed)
            actual, expected = tiny.logits(model), tiny.logits(eager)
            backward(actual)
            backward(expected)
            torch.testing.assert_close(actual, expected)
            assert_all_close(gradients(adapter), gradients(twin))


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated")
@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("make", [tiny.bert, tiny.gpt2])
@pytest.mark.parametrize("method", METHODS)
def test_checkpointing_changes_nothing(method: str, make: Callable[[], Any], use_reentrant: bool) -> None:
    (model, adapter), (plain, twin) = adapted(make(), method), adapted(make(), method)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    model.enable_input_require_grads()
    for seed in range(2):
        for side in (adapter, twin):
            tiny.scramble(side, seed=seed)
        actual, expected = tiny.logits(model.train()), tiny.logits(plain.train())
        backward(actual)
        backward(expected)
        assert torch.equal(actual, expected)
        assert_all_close(gradients(adapter), gradients(twin))


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated")
@pytest.mark.parametrize("method", METHODS)
def test_a_recomputed_block_uses_the_numbers_of_its_forward(method: str) -> None:
    model, adapter = adapted(method=method)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    backward(tiny.logits(model.train()))
    expected = gradients(adapter)
    output = tiny.logits(model)
    tiny.scramble(adapter, seed=1)
    backward(output)
    assert_all_close(gradients(adapter), expected)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated")
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_two_forwards_before_a_backward(method: str, checkpointing: bool) -> None:
    model, adapter = adapted(method=method)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
    backward(tiny.logits(model))
    backward(tiny.logits(model, tiny.IDS.flip(0, 1)))
    expected = gradients(adapter)
    first, second = tiny.logits(model), tiny.logits(model, tiny.IDS.flip(0, 1))
    with torch.no_grad():
        tiny.logits(model)
    (first.square().sum() + second.square().sum()).backward()
    assert_all_close(gradients(adapter), expected)


@pytest.mark.parametrize("method", METHODS)
def test_micro_batches_accumulate(method: str) -> None:
    model, adapter = adapted(method=method)
    apart = []
    for row in tiny.IDS.split(1):
        backward(tiny.logits(model, row))
        apart.append(gradients(adapter))
    for row in tiny.IDS.split(1):
        backward(tiny.logits(model, row))
    together = gradients(adapter)
    assert all(torch.equal(a + b, both) for a, b, both in zip(*apart, together, strict=True))
    backward(tiny.logits(model))
    assert_all_close(together, gradients(adapter))


# Parts of a model, and modes.


@pytest.mark.parametrize("method", METHODS)
def test_a_part_called_directly_equals_the_whole(method: str) -> None:
    model, adapter = adapted(method=method)
    for _ in range(2):
        inside = model(tiny.IDS, output_hidden_states=True).hidden_states[-1]
        backward(inside)
        expected = gradients(adapter)
        for alone in (
            model.bert.encoder(model.bert.embeddings(tiny.IDS)).last_hidden_state,
            model.bert(tiny.IDS).last_hidden_state,
        ):
            backward(alone)
            assert torch.equal(alone, inside)
            assert_all_close(gradients(adapter), expected)
        tiny.scramble(adapter, seed=1)


def edit_data(adapter: Adapter) -> None:
    for parameter in adapter.role_parameters.values():
        parameter.data.mul_(2)


def replace_data(adapter: Adapter) -> None:
    for parameter in adapter.role_parameters.values():
        parameter.data = parameter.data * 2


def edit_without_gradient(adapter: Adapter) -> None:
    with torch.no_grad():
        for parameter in adapter.role_parameters.values():
            parameter[..., :1] += 1


def load_state(adapter: Adapter) -> None:
    adapter.load_state_dict({name: 2 * values for name, values in adapter.state_dict().items()}, assign=True)


def step(**options: Any) -> Callable[[Adapter], None]:
    def edit(adapter: Adapter) -> None:
        for parameter in adapter.role_parameters.values():
            parameter.grad = torch.ones_like(parameter)
        torch.optim.AdamW(adapter.role_parameters.values(), lr=0.5, **options).step()

    return edit


EDITS = [
    edit_data,
    replace_data,
    edit_without_gradient,
    load_state,
    step(),
    step(foreach=True),
    step(fused=True),
]


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("method", METHODS)
def test_edited_numbers_are_seen(method: str, edit: Callable[[Adapter], None]) -> None:
    model, adapter = adapted(method=method)
    parts: list[Callable[[], Tensor]] = [
        lambda: tiny.logits(model),
        lambda: model.classifier(model.bert(tiny.IDS).pooler_output),
    ]
    for part in parts:
        with torch.no_grad():
            before = part()
            assert torch.equal(part(), before)
        backward(part())
        edit(adapter)
        expected = fresh_logits(adapter)
        assert not torch.equal(expected, before)
        with torch.no_grad():
            assert torch.equal(part(), expected)
        adapter.zero_grad()
        backward(part())
        assert all(parameter.grad is not None for parameter in adapter.role_parameters.values())


@pytest.mark.parametrize("method", METHODS)
def test_training_after_inference_mode(method: str) -> None:
    (model, adapter), (plain, twin) = adapted(method=method), adapted(method=method)
    with torch.inference_mode():
        seen = tiny.logits(model)
        hidden = model.bert(tiny.IDS)
    with torch.no_grad():
        assert torch.equal(tiny.logits(model), seen)
        assert torch.equal(model.bert(tiny.IDS).pooler_output, hidden.pooler_output)
    for side in (model, plain):
        tiny.train(side)
    assert_all_close(list(adapter.role_parameters.values()), list(twin.role_parameters.values()), rtol=0, atol=0)


@pytest.mark.parametrize("method", METHODS)
def test_autocast(method: str) -> None:
    model, adapter = adapted(method=method)
    precise = tiny.logits(model)
    backward(precise)
    expected = gradients(adapter)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = tiny.logits(model)
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - precise).norm() < 2e-2 * precise.norm()
    backward(rounded)
    for actual, gradient in zip(gradients(adapter), expected, strict=True):
        assert actual.dtype == torch.float32
        assert (actual - gradient).norm() < 0.1 * gradient.norm()


CASTS = {
    "half": lambda model: model.half(),
    "bfloat16": lambda model: model.to(torch.bfloat16),
    "float64": lambda model: model.double(),
    "to": lambda model: model.to("cpu", torch.bfloat16),
}


@pytest.mark.parametrize("cast", CASTS)
@pytest.mark.parametrize("method", METHODS)
def test_casting_a_model_leaves_the_numbers_alone(method: str, cast: str) -> None:
    model, adapter = adapted(method=method)
    before = {name: tensor.clone() for name, tensor in adapter.state_dict().items()}
    streams = {name: tensor.clone() for name, tensor in adapter.named_buffers()}
    precise = tiny.logits(model)
    CASTS[cast](model)
    assert model.classifier.weight.dtype != torch.float32
    for actual, expected in ((adapter.state_dict(), before), (dict(adapter.named_buffers()), streams)):
        assert all(actual[name].dtype == expected[name].dtype for name in expected)
        assert all(torch.equal(actual[name], expected[name]) for name in expected)
    cast_logits = tiny.logits(model)
    assert cast_logits.dtype == model.classifier.weight.dtype
    assert (cast_logits - precise).norm() < 2e-2 * precise.norm()
    backward(cast_logits)
    assert all(gradient.dtype == torch.float32 for gradient in gradients(adapter))


def test_disabled_is_the_base_nests_and_ends() -> None:
    model, _ = adapted()
    tiny.scramble(capaft.attach(model, "lora", name="second", targets="all-linear"))
    capaft.switch(model, ["default", "second"])
    expected, base = tiny.logits(model), tiny.logits(tiny.bert())
    with capaft.disabled(model):
        assert torch.equal(tiny.logits(model), base)
        with capaft.disabled(model):
            assert torch.equal(tiny.logits(model), base)
        assert torch.equal(tiny.logits(model), base)
        assert torch.equal(model.classifier(model.bert(tiny.IDS).pooler_output), base)
    assert torch.equal(tiny.logits(model), expected)
    with pytest.raises(KeyError), capaft.disabled(model):
        raise KeyError
    assert torch.equal(tiny.logits(model), expected)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated")
def test_the_base_may_be_asked_between_forward_and_backward() -> None:
    model, adapter = adapted()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    backward(tiny.logits(model))
    expected = gradients(adapter)
    output = tiny.logits(model)
    with torch.no_grad(), capaft.disabled(model):
        tiny.logits(model)
    backward(output)
    assert_all_close(gradients(adapter), expected)


def test_a_forward_that_fails_leaves_nothing_behind() -> None:
    model, adapter = adapted()
    fail = model.classifier.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tiny.logits(model)
    fail.remove()
    tiny.scramble(adapter, seed=1)
    expected = fresh_logits(adapter)
    assert torch.equal(model.classifier(model.bert(tiny.IDS).pooler_output), expected)
    assert torch.equal(tiny.logits(model), expected)


def test_generation_equals_the_merged_models() -> None:
    model, _ = adapted(tiny.gpt2())
    options = {"max_new_tokens": 12, "do_sample": False, "attention_mask": torch.ones_like(tiny.IDS)}
    base = tiny.gpt2().generate(tiny.IDS, **options)
    generated = model.generate(tiny.IDS, **options)
    capaft.merge(model)
    assert torch.equal(generated, model.generate(tiny.IDS, **options))
    assert not torch.equal(generated, base)


# Names.


def test_names_must_be_new_and_known() -> None:
    model, adapter = adapted()
    with pytest.raises(UsageError, match="already has an adapter named default"):
        capaft.attach(model, "lora")
    for name in ("", "a b", "a.b", "a#q"):
        with pytest.raises(UsageError, match="must be an identifier"):
            capaft.attach(model, "lora", name=name)
    with pytest.raises(UsageError, match="no adapter named other; it has: default"):
        capaft.detach(model, "other")
    assert capaft.adapters(model) == {"default": adapter}
    capaft.detach(model)
    with pytest.raises(UsageError, match="no adapter named default; it has: none"):
        capaft.detach(model)


def test_no_names_of_adapters_clash() -> None:
    model = tiny.gpt2()
    for name, targets in (("a", "qv"), ("a_q", "c_attn"), ("a_v", "c_attn")):
        tiny.scramble(capaft.attach(model, "lora", name=name, targets=targets))
    capaft.switch(model, ["a", "a_q", "a_v"])
    for name in ("a", "a_v", "a_q"):
        before = tiny.logits(model)
        capaft.detach(model, name)
        assert not torch.equal(tiny.logits(model), before)
    assert torch.equal(tiny.logits(model), tiny.logits(tiny.gpt2()))


def test_a_model_may_be_one_layer() -> None:
    layer = nn.Linear(8, 8)
    adapter = tiny.scramble(capaft.attach(layer, "lora", rank=2, targets="all-linear"))
    x = torch.randn(3, 8)
    ((_, (down, up)),) = adapter.factors_of_sites()
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight + 2 * up @ down, layer.bias))
    capaft.detach(layer)
    assert [name for name, _ in layer.named_modules()] == [""]


# Layers whose weights are read without a call.


class Reader(nn.Module):
    """Calls one layer, and reads the weight of another."""

    def __init__(self, called: bool = True) -> None:
        super().__init__()
        self.query, self.value, self.called = nn.Linear(8, 8), nn.Linear(8, 8), called

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.query(x) if self.called else x @ self.query.weight, self.value.weight)


@pytest.mark.parametrize("called", [True, False])
def test_a_weight_that_is_read_is_read_as_the_adapter_changes_it(called: bool) -> None:
    torch.manual_seed(0)
    model, x = Reader(called), torch.randn(2, 8)
    before, names = model(x), set(model.state_dict())
    adapter = tiny.scramble(capaft.attach(model, "lora", rank=2))
    changed = {site.path: 2 * up @ down for site, (down, up) in adapter.factors_of_sites()}
    query = model.query._parameters["weight"] + changed["query"]
    hidden = F.linear(x, query, model.query.bias) if called else x @ query
    expected = F.linear(hidden, model.value._parameters["weight"] + changed["value"])
    torch.testing.assert_close(model(x), expected)
    with capaft.disabled(model):
        assert torch.equal(model(x), before)
    assert names <= set(model.state_dict())
    assert torch.equal(copy.deepcopy(model)(x), model(x))
    model(x).sum().backward()
    assert all(parameter.grad is not None for parameter in adapter.parameters())
    capaft.detach(model)
    assert type(model.value) is nn.Linear
    assert torch.equal(model(x), before)


def test_two_adapters_on_a_weight_that_is_read() -> None:
    model, x = Reader(), torch.ones(2, 8)
    before = model(x)
    for name in ("a", "b"):
        tiny.scramble(capaft.attach(model, "lora", rank=2, name=name, seed=len(name)))
    capaft.switch(model, ["a", "b"])
    both = model(x)
    capaft.detach(model, "a")
    assert type(model.value) is not nn.Linear
    assert not torch.equal(model(x), both)
    assert not torch.equal(model(x), before)
    capaft.detach(model, "b")
    assert torch.equal(model(x), before)


class Idle(Reader):
    """Has layers that are never called."""

    def forward(self, x: Tensor) -> Tensor:
        return self.query(x) if self.called else x


def test_a_layer_that_is_not_called_is_named_once() -> None:
    model = Idle()
    capaft.attach(model, "lora")
    with pytest.warns(UserWarning, match="not called in the first forward: value"):
        model(torch.ones(2, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(torch.ones(2, 8))


def test_no_layer_called_is_an_error() -> None:
    model = Idle(called=False)
    capaft.attach(model, "lora")
    with pytest.raises(UsageError, match="the forward called none of the adapted layers; choose other target modules"):
        model(torch.ones(2, 8))


def test_layers_called_outside_the_root_count_as_called() -> None:
    model, _ = adapted()
    embedded = model.bert.embeddings(tiny.IDS)
    model.bert.encoder(embedded)
    model.forward = lambda hidden: model.classifier(model.bert.encoder.layer[1](hidden)[:, 0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(embedded)


# Parameters trained beside an adapter, and plans that cannot be made.


def test_a_head_is_trained_and_the_models_own_comes_back() -> None:
    model, adapter = adapted(head=("classifier.weight", "classifier.bias"))
    original, before = tiny.bert().classifier.weight, model.classifier.weight.detach().clone()
    tiny.train(model)
    assert not torch.equal(model.classifier.weight, before)
    expected = ["down", "up", "head:classifier.bias", "head:classifier.weight"]
    assert list(adapter.trained(model)) == expected
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(trainable) == len(expected)
    after = model.classifier.weight.detach().clone()
    capaft.detach(model)
    assert torch.equal(model.classifier.weight, original)
    assert torch.equal(adapter.trained(model)["head:classifier.weight"], after)


def test_an_adapter_leaves_anothers_head_trainable() -> None:
    model, _ = adapted(head=("classifier.weight",))
    capaft.attach(model, "lora", name="second")
    assert model.classifier.weight.requires_grad
    assert not model.classifier.bias.requires_grad
    capaft.detach(model)
    assert not model.classifier.weight.requires_grad
    capaft.detach(model, "second")
    assert model.classifier.weight.requires_grad
    assert model.classifier.bias.requires_grad


@pytest.mark.parametrize(
    ("method", "options", "trained"),
    [("head", {"head": ("classifier.weight",)}, 1), ("full", {}, len(list(tiny.bert().parameters())))],
)
def test_methods_without_a_host(method: str, options: dict[str, Any], trained: int) -> None:
    model = tiny.bert()
    adapter = capaft.attach(model, method, **options)
    assert len(adapter.trained(model)) == trained
    assert sum(parameter.requires_grad for parameter in model.parameters()) == trained
    tiny.train(model, steps=1)
    after = tiny.logits(model)
    assert capaft.merge(model) == 0
    assert torch.equal(tiny.logits(model), after)


def test_full_beside_an_adapter_trains_the_base_alone() -> None:
    model, adapter = adapted()
    other = capaft.attach(model, "full", name="other")
    assert len(other.plan.trained) == len(list(tiny.bert().parameters()))
    capaft.detach(model, "other")
    assert [id(p) for p in model.parameters() if p.requires_grad] == [id(p) for p in adapter.parameters()]


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("lora", {"seed": -1}, r"--seed must be in \[0, 2\*\*64\), got -1"),
        ("lora", {"seed": 2**64}, r"--seed must be"),
        ("lora", {"head": ["classifier.wait"]}, "no parameter classifier.wait to train"),
        ("lora", {"rank": 33}, r"--rank 33 exceeds the smaller side of encoder.layer.0.*; use --rank 32 or less"),
        ("capaboost", {"rank": 16, "copies": 3}, "hidden width of 48"),
        ("capaboost", {"rank": 1, "density": 0.01}, "--density 0.01 keeps none of the 32 entries of down"),
    ],
)
def test_what_cannot_be_planned(method: str, options: dict[str, Any], message: str) -> None:
    placing = {key: options.pop(key) for key in ("seed", "head") if key in options}
    model = tiny.bert()
    with pytest.raises(UsageError, match=message):
        make_plan(model, parse_stack(method, **options), Placement(**placing))
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_numbers_beside_a_stack_that_is_parsed_already_are_refused() -> None:
    model, stack = tiny.bert(), parse_stack("nola", k=4)
    message = "the method is a Stack, which has its options already; give gain, k to capaft.Stack.parse"
    with pytest.raises(UsageError, match=message):
        capaft.attach(model, stack, k=8, method_options={"gain": 2}, seed=3)
    with pytest.raises(TypeError, match="rnak"):
        capaft.attach(model, stack, rnak=2)  # type: ignore[call-arg]
    assert not capaft.adapters(model)
    capaft.attach(model, stack, seed=3, dropout=0.1, targets="query", exclude="", layers="0", rename={}, head_k=9)


def test_options_of_methods_from_other_packages() -> None:
    model = tiny.bert()
    with pytest.raises(UsageError, match="no method has an option rnak; did you mean rank"):
        capaft.attach(model, "lora", method_options={"rnak": 2})
    with pytest.raises(UsageError, match="rank is set twice, by its keyword and in method_options; drop one of them"):
        capaft.attach(model, "lora", rank=2, method_options={"rank": 2})
    assert capaft.attach(model, "lora", method_options={"rank": 2}).plan.stack == parse_stack("lora", rank=2)


def test_targets_beside_a_targets_are_refused() -> None:
    model, targets = tiny.bert(), Targets("query", layers="0")
    with pytest.raises(UsageError, match="targets is a Targets, which has exclude and layers of its own"):
        capaft.attach(model, "lora", targets=targets, layers="1")
    assert len(capaft.attach(model, "lora", targets=targets).plan.sites) == 1


def test_the_largest_seed() -> None:
    model, adapter = adapted(seed=2**64 - 1)
    assert adapter.plan.seed == 2**64 - 1
    assert tiny.logits(model).isfinite().all()


def test_a_copy_with_a_prefix_lets_go_of_its_own_attention_only() -> None:
    model = tiny.bert()
    model.config = copy.deepcopy(model.config)
    for module in model.modules():
        if hasattr(module, "config"):
            module.config = model.config
    before = model.config._attn_implementation
    tiny.scramble(capaft.attach(model, "prefix", prefix_length=2))
    expected = tiny.logits(model)
    other = copy.deepcopy(model)
    capaft.detach(other)
    assert torch.equal(tiny.logits(model), expected)
    assert not torch.equal(tiny.logits(other), expected)
    assert other.config._attn_implementation == before != model.config._attn_implementation


@pytest.mark.parametrize(("method", "targets"), [("dora", "word_embeddings"), ("lora", "qv"), ("prefix", "")])
def test_a_model_with_an_adapter_can_be_pickled(method: str, targets: str) -> None:
    model = tiny.bert()
    tiny.scramble(capaft.attach(model, method, targets=targets))
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    other = torch.load(stream, weights_only=False)
    assert torch.equal(tiny.logits(other), tiny.logits(model))
    capaft.detach(other)
    assert torch.equal(tiny.logits(other), tiny.logits(tiny.bert()))


@pytest.mark.parametrize("method", ["lora", "vera", "dora"])
def test_autocast_leaves_embeddings_as_they_are(method: str) -> None:
    model = tiny.bert()
    with torch.autocast("cpu", torch.bfloat16):
        before = tiny.logits(model)
        # Token types have two rows.
        capaft.attach(model, method, targets="embeddings", rank=2)
        assert torch.equal(tiny.logits(model), before)


def test_codes_of_float8_are_not_taken_for_numbers() -> None:
    class Float8Linear(nn.Linear):
        def __init__(self) -> None:
            super().__init__(8, 8, bias=False)
            self.weight = nn.Parameter(self.weight.data.to(torch.float8_e4m3fn), requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            return x @ (self.weight.float() * 0.1).T

    model, x = nn.ModuleDict({"query": Float8Linear()}), torch.randn(2, 8)
    before = model["query"](x)
    adapter = tiny.scramble(capaft.attach(model, "lora", rank=2, targets="query"))
    ((site, (down, up)),) = adapter.factors_of_sites()
    assert not site.parametrised
    torch.testing.assert_close(model["query"](x), before + 2 * x @ down.T @ up.T)
    with pytest.raises(UsageError, match="quantised"):
        capaft.merge(model)
    with pytest.raises(UsageError, match="dora needs the norms of query, which is quantised; choose lora"):
        capaft.attach(nn.ModuleDict({"query": Float8Linear()}), "dora", targets="query")


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"method": None}, "method must be a method stack such as 'nola', got None"),
        ({"method": ["lora"]}, r"method must be a method stack such as 'nola', got \['lora'\]"),
        ({"model": "bert"}, "model must be a torch module, got 'bert'"),
        ({"name": 3}, "name must be a text, got 3"),
        ({"dropout": "0.1"}, "dropout must be a number, got '0.1'"),
        ({"dropout": None}, "dropout must be a number, got None"),
        ({"seed": "1"}, r"seed must be in \[0, 2\*\*64\), got '1'"),
        ({"seed": None}, r"seed must be in \[0, 2\*\*64\), got None"),
        ({"rank": "8"}, "rank must be a whole number of at least 1, got '8'"),
        ({"targets": ["query"]}, r"targets must be one text, with commas between its parts, got \['query'\]"),
        ({"exclude": ["query"]}, r"exclude must be one text, with commas between its parts, got \['query'\]"),
        ({"layers": [0]}, r"layers must be one text, with commas between its parts, got \[0\]"),
        ({"modules_to_save": ["pooler"]}, "modules_to_save must be one text, with commas between its parts, got .*"),
        ({"head": "classifier"}, "head must be a list of names, got 'classifier'"),
        ({"head": 3}, "head must be a list of names, got 3"),
        ({"rename": "a=b"}, "rename must be a dictionary, got 'a=b'"),
        ({"method_options": "a=b"}, "method_options must be a dictionary, got 'a=b'"),
    ],
)
def test_a_value_of_another_type_is_one_line(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=f"^{message}$"):
        capaft.attach(**{"model": tiny.bert(), "method": "lora"} | keywords)


def test_an_option_of_another_method_is_ignored_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="^k has no effect with lora and is ignored$"):
        capaft.attach(tiny.bert(), "lora", k=5)
    with pytest.warns(UserWarning, match="^bottleneck has no effect with lora and is ignored$") as caught:
        capaft.attach(tiny.bert(), "lora", method_options={"bottleneck": 5})
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match=r"^copies has no effect with lora\+nola and is ignored$") as caught:
        capaft.Stack.parse("nola", copies=2)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        capaft.attach(tiny.bert(), "lora+nola+capaboost", k=5, copies=2, rank=2)
