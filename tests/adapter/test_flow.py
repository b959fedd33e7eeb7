from __future__ import annotations

import copy
import gc
import os
import pickle
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

import capaft
from capaft.methods.registry import HOSTS

THREADS, FORWARDS = 8, int(os.environ.get("CAPAFT_TEST_FORWARDS", "5"))
METHODS = [*HOSTS, "parallel+nola+capaboost"]


@pytest.fixture(autouse=True)
def switching_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def adapted(method: str, make: Callable[[], Any] = tiny.bert) -> Any:
    model = make()
    options = {"k": 8} if "nola" in method else {}
    size = HOSTS[method.split("+")[0]].size
    tiny.scramble(capaft.attach(model, method, **options, **({size: 4} if size else {})))
    tiny.logits(model)  # The first forward notes which sites were called.
    return model


def ids(index: int) -> Tensor:
    return torch.randint(1, 64, (2, 5 + index % 3), generator=torch.Generator().manual_seed(index))


def result(model: Any, index: int, grad: bool) -> list[Tensor]:
    """The logits of a thread's own input, and the gradients of the adapter's parameters."""
    with torch.set_grad_enabled(grad):
        logits = model(input_ids=ids(index)).logits
    if not grad:
        return [logits]
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [logits.detach(), *torch.autograd.grad(logits.square().sum(), parameters)]


def in_threads(work: Callable[[int], Any]) -> list[Any]:
    """Results of a function of a thread's number, all at once; the first error is raised."""
    results: list[Any] = [None] * THREADS
    errors: list[BaseException] = []
    barrier = threading.Barrier(THREADS)

    def run(index: int) -> None:
        try:
            barrier.wait()
            results[index] = work(index)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


def same(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_threads_do_not_meet(method: str, grad: bool) -> None:
    model = adapted(method)
    expected = [result(model, index, grad) for index in range(THREADS)]
    actual = in_threads(lambda index: [result(model, index, grad) for _ in range(FORWARDS)])
    assert all(same(one, expected[index]) for index in range(THREADS) for one in actual[index])


@pytest.mark.parametrize("make", [tiny.gpt2, tiny.mixtral, tiny.neox])
def test_threads_do_not_meet_in_other_models(make: Callable[[], Any]) -> None:
    model = adapted("parallel", make)
    expected = [result(model, index, True) for index in range(THREADS)]
    actual = in_threads(lambda index: [result(model, index, True) for _ in range(FORWARDS)])
    assert all(same(one, expected[index]) for index in range(THREADS) for one in actual[index])


@pytest.mark.parametrize("method", ["parallel", "lora"])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointed_blocks_recompute_for_their_own_thread(method: str, use_reentrant: bool) -> None:
    model = adapted(method)
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    model.enable_input_require_grads()
    model.train()

    def gradients(index: int) -> list[Tensor]:
        if not use_reentrant:
            return result(model, index, True)
        # Reentrant checkpoints allow no `autograd.grad`, and `.grad` is shared: here only the values count.
        output = model(input_ids=ids(index)).logits
        output.square().sum().backward()
        return [output.detach()]

    expected = [gradients(index) for index in range(THREADS)]
    actual = in_threads(lambda index: [gradients(index) for _ in range(3)])
    assert all(same(one, expected[index]) for index in range(THREADS) for one in actual[index])


def replicas(model: nn.Module, count: int) -> list[nn.Module]:
    """Replicas as `nn.DataParallel` makes them, all on one CPU."""
    copies = []
    for _ in range(count):
        twins = {module: module._replicate_for_data_parallel() for module in model.modules()}
        for module, twin in twins.items():
            twin._former_parameters = {}
            for name, child in module._modules.items():
                twin._modules[name] = None if child is None else twins[child]
            for name, parameter in module._parameters.items():
                if parameter is None:
                    twin._parameters[name] = None
                else:
                    view = parameter.view_as(parameter)
                    setattr(twin, name, view)
                    twin._former_parameters[name] = view
        copies.append(twins[model])
    return copies


class Blocks(nn.Module):
    """Transformer blocks that read no parameter of their own, as replicas have none."""

    base_model_prefix = ""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.ModuleDict({"value": nn.Linear(8, 8), "out_proj": nn.Linear(8, 8)})
            self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.attention["out_proj"](self.attention["value"](x))
            return x + self.down(torch.relu(self.up(x)))

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([self.Block(), self.Block()])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.mark.parametrize("method", ["parallel", "houlsby", "pfeiffer", "lora", "dora", "bitfit"])
def test_replicas_of_data_parallel(method: str) -> None:
    torch.manual_seed(0)
    model = Blocks()
    tiny.scramble(capaft.attach(model, method, targets="up,down" if method in ("lora", "dora") else "", rank=2))
    x = [torch.randn(2, 3, 8) for _ in range(THREADS)]
    expected = [model(one).detach() for one in x]
    copies = replicas(model, THREADS)
    actual = in_threads(lambda index: [copies[index](x[index]) for _ in range(FORWARDS)])
    assert all(torch.equal(one, expected[index]) for index in range(THREADS) for one in actual[index])
    parameters = [p for p in model.parameters() if p.requires_grad]
    summed = torch.autograd.grad(sum(ys[0].square().sum() for ys in actual), parameters)
    alone = torch.autograd.grad(sum(model(one).square().sum() for one in x), parameters)
    for one, other in zip(summed, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["parallel", "pfeiffer", "lora"])
def test_a_forward_inside_a_forward(method: str) -> None:
    model = adapted(method)
    expected, inner = result(model, 0, True), result(model, 1, False)
    seen, nested = [], []

    def again(module: nn.Module, args: Any) -> None:
        if not nested:
            nested.append(True)
            seen.append(result(model, 1, False))
            nested.clear()

    # Between the layer whose input is kept and the one whose output is changed.
    model.bert.encoder.layer[0].intermediate.intermediate_act_fn = Then(again)
    actual = result(model, 0, True)
    assert same(actual, expected)
    assert all(same(one, inner) for one in seen)
    assert seen


class Then(nn.Module):
    def __init__(self, action: Callable[[Any, Any], None]) -> None:
        super().__init__()
        self.action = action

    def forward(self, x: Tensor) -> Tensor:
        self.action(self, x)
        return nn.functional.gelu(x)


def test_a_failed_forward_leaves_nothing_behind() -> None:
    model = adapted("parallel")
    expected = result(model, 0, True)
    held: list[weakref.ref[Tensor]] = []

    def fail(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        held.append(weakref.ref(args[0]))
        raise ValueError("no")

    handle = model.bert.encoder.layer[1].output.dense.register_forward_pre_hook(fail)
    source = model.bert.encoder.layer[1].intermediate.dense.register_forward_pre_hook(
        lambda module, args: held.append(weakref.ref(args[0]))
    )
    with pytest.raises(ValueError, match="no"), torch.no_grad():
        result(model, 0, False)
    handle.remove()
    source.remove()
    gc.collect()
    assert all(tensor() is None for tensor in held)
    assert same(result(model, 0, True), expected)


def test_a_place_without_its_source_is_refused() -> None:
    model = adapted("parallel")
    layer = model.bert.encoder.layer[0]
    with pytest.raises(capaft.UsageError, match=r"output\.dense was called without .*intermediate\.dense"):
        layer.output.dense(torch.randn(1, 3, 64))
    inside, expected = torch.randn(1, 3, 32), []
    with torch.no_grad():
        for _ in range(2):
            expected.append(layer.output(layer.intermediate(inside), inside))
    assert torch.equal(*expected)


def test_copies_begin_outside_any_forward() -> None:
    model = adapted("parallel")
    twins: list[Any] = []

    def duplicate(module: nn.Module, args: Any) -> None:
        twins.append(pickle.loads(pickle.dumps(capaft.adapters(model)["default"].flow)))

    with torch.no_grad():
        tiny.logits(model)
        handle = model.bert.encoder.layer[0].output.dense.register_forward_pre_hook(duplicate)
        tiny.logits(model)
    handle.remove()
    assert [twin.factors for twin in twins] == [None]
    assert same(result(copy.deepcopy(model), 0, True), result(model, 0, True))
