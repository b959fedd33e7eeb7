"""How much memory training will take at its peak, found without taking it.

Two steps run on a hollow copy of the model, whose tensors have shapes and no contents (torch's `FakeTensor`), and a
dispatch mode counts the storages that come and go. That is all that an accelerator holds. A process also holds what is
there before the first step, and what its heap loses; see `heap`.
"""

from __future__ import annotations

import copy
import importlib
import os
import weakref
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from capaft.tasks.base.features import Batch
from capaft.training import heap
from capaft.training.accelerator import peak_memory
from capaft.training.heap import Heap, Request, Requests
from capaft.training.optimizer import build_optimizer

Loss = Callable[[Any, Mapping[str, Tensor]], Tensor]

# Pages of torch's and MKL's libraries that the first step reads, and MKL's buffers: 9 to 15 MiB where measured.
LIBRARIES = 12 * 2**20
# What a run imports that a dry run need not: to fit a head, and to draw the losses.
IMPORTED_LATER = ("sklearn.linear_model", "matplotlib.figure")
# torch's caching allocator hands out multiples of this (kMinBlockSize, c10/cuda/CUDACachingAllocator.cpp).
CUDA_BLOCK = 512
# A mask over all pairs of tokens can be large; what has more numbers is hollow in any case.
MOST_CONTENTS = 2**20
# bitsandbytes keeps the state of smaller parameters in float32 (`min_8bit_size`).
EIGHT_BIT_FROM = 4096


def estimate_peak_memory(
    model: nn.Module,
    batch: Batch,
    loss: Loss,
    *,
    optimizer: str = "adamw",
    autocast: torch.dtype | None = None,
    accumulates: bool = False,
    evaluated: Batch | None = None,
    device: torch.device | None = None,
) -> int | None:
    """Peak memory of training in bytes: of the accelerator, or on a CPU of the process, as a run reports it.

    Args:
        model: as it will be trained: with its adapter, in training mode. It stays as it is.
        batch: the training batch that takes most memory.
        loss: from the model's outputs and the batch's targets to what is differentiated.
        optimizer: name of the optimiser; see `build`.
        autocast: what operations compute in under autocast; None without.
        accumulates: whether a step adds up the gradients of several such batches.
        evaluated: the evaluation batch that takes most memory.
        device: where training runs; by default where the model is.

    Returns:
        None where it cannot be told: mostly because what the model's code does depends on what its tensors hold.
    """
    device = device or next(model.parameters()).device
    resident = 0
    if device.type == "cpu":
        for name in IMPORTED_LATER:
            with suppress(ImportError):
                importlib.import_module(name)
        resident = _resident() + _unread(model.parameters()) + LIBRARIES
    try:
        found = _rehearse(model, batch, loss, optimizer, autocast, accumulates, evaluated, device)
    # What code trips over that finds tensors without contents can be anything, and a dry run goes on without a number.
    except Exception:
        return None
    if device.type != "cpu":
        return found.peak
    grown = found.peak - found.weights
    with suppress(MemoryError):
        grown = max(grown, heap.growth(found.requests))
    return max(resident + grown, peak_memory())


@dataclass(frozen=True)
class Rehearsal:
    """What a hollow run did.

    Attributes:
        weights: bytes of the model before the first step.
        peak: bytes of all that lived at the same time at most, the weights included.
        requests: what the heap was asked for after that.
    """

    weights: int
    peak: int
    requests: Requests


def _rehearse(
    model: nn.Module,
    batch: Batch,
    loss: Loss,
    optimizer: str,
    autocast: torch.dtype | None,
    accumulates: bool,
    evaluated: Batch | None,
    device: torch.device,
) -> Rehearsal:
    """Do what `train` does, on a hollow copy of the model."""
    counting = _Counting(device)
    with counting.fake, _Copying(device):
        hollow = copy.deepcopy(model)
    for tensor in (*hollow.parameters(), *hollow.buffers()):
        counting.count(tensor)
    weights = counting.live
    counting.requested()
    trained = [parameter for parameter in hollow.parameters() if parameter.requires_grad]
    built = _optimiser(optimizer, trained)

    def forward(batch: Batch) -> Any:
        with torch.autocast(device.type, autocast) if autocast else nullcontext():
            return hollow(**{name: tensor.to(device) for name, tensor in batch.inputs.items()})

    def backward() -> None:
        outputs = forward(batch)
        loss(outputs, {name: tensor.to(device) for name, tensor in batch.targets.items()}).backward()
        counting.forget_graph()

    def step() -> Sequence[Request]:
        backward()
        if accumulates:
            backward()
        with counting.guessing():
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            built.step()
        built.zero_grad()
        return counting.requested()

    with counting:
        first, later = step(), step()
        if evaluated:
            hollow.eval()
            with torch.no_grad():
                forward(evaluated)
    states = (value for state in built.state.values() for value in state.values() if isinstance(value, Tensor))
    saved = [tensor.numel() * tensor.element_size() for tensor in (*trained, *states)]
    return Rehearsal(weights, counting.peak, Requests(first, later, counting.requested(), saved))


def _optimiser(name: str, trained: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser that will be used, or one whose state is as large."""
    if name == "adamw-8bit":
        return _EightBit(trained, {})
    return build_optimizer(name, [{"params": trained, "lr": 1e-3}])


class _EightBit(torch.optim.Optimizer):
    """What bitsandbytes' 8-bit Adam holds: two bytes for each number, and two scales for each 256.

    Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization", arXiv 2110.02861.
    """

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Make the state, if there is none yet."""
        for parameter in self.param_groups[0]["params"]:
            state = self.state[parameter]
            if not state:
                eight = parameter.numel() >= EIGHT_BIT_FROM
                for name in ("state1", "state2"):
                    state[name] = torch.zeros_like(parameter, dtype=torch.uint8 if eight else torch.float32)
                if eight:
                    state["absmax"] = parameter.new_zeros(2, -(-parameter.numel() // 256), dtype=torch.float32)


class _Copying(TorchFunctionMode):
    """Deep copies of tensors are empty. Under a fake mode they are hollow."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.__deepcopy__:
            tensor, memo = args
            if id(tensor) not in memo:
                memo[id(tensor)] = self._empty(tensor)
            return memo[id(tensor)]
        # Parameters copy themselves in Python, and this is the part of it that copies.
        if func is torch.Tensor.clone:
            return self._empty(args[0])
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    def _empty(self, tensor: Tensor) -> Tensor:
        with torch._C.DisableTorchFunctionSubclass():
            return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=self.device)


class _Counting(TorchDispatchMode):
    """Counts the bytes of all storages that live, and notes what the heap is asked for.

    What a model is given has contents, and so has what is computed from that alone: masks, and which of the tokens
    count, decide what code does next. All else is hollow.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.live = self.peak = 0
        self._requests: list[Request] = []
        # By address of the storage, its number.
        self._alive: dict[int, int] = {}
        self._numbers = 0
        self._guesses = False

    def requested(self) -> Sequence[Request]:
        """What the heap was asked for since this was last called."""
        found, self._requests = self._requests, []
        return found

    def forget_graph(self) -> None:
        """Note that the graph of a backward is gone."""
        self._requests.append(Heap.forget_graph)

    @contextmanager
    def guessing(self) -> Iterator[None]:
        """For as long as the context lasts, a number that is asked of a hollow tensor is 1."""
        self._guesses = True
        yield
        self._guesses = False

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        is_hollow = any(isinstance(tensor, FakeTensor) for tensor in given)
        if is_hollow and self._guesses and func is torch.ops.aten._local_scalar_dense.default:
            return 1.0
        if is_hollow and func is torch.ops.aten.index.Tensor:
            args = (args[0], [each for index in args[1] for each in _positions(index)])
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given) and _makes_node(func):
            self._requests.append(partial(Heap.node, is_product="mm" in func.__name__))
        result = func(*args, **kwargs) if is_hollow else self._of_contents(func, args, kwargs, bool(given))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.count(leaf)
        return result

    def _of_contents(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], given: bool) -> Any:
        """What an operation makes of no tensors, which is hollow, or of those with contents, which is not if small."""
        try:
            with self.fake:
                result = func(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException):
            return func(*args, **kwargs)
        numbers = sum(leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        return func(*args, **kwargs) if given and numbers <= MOST_CONTENTS else result

    def count(self, tensor: Tensor) -> None:
        """Count a tensor's storage, unless it has been."""
        storage = tensor.untyped_storage()
        address, size = storage._cdata, storage.nbytes()
        if address in self._alive or not size:
            return
        if self.device.type == "cuda":
            size = -(-size // CUDA_BLOCK) * CUDA_BLOCK
        self._numbers += 1
        self._alive[address] = self._numbers
        self.live += size
        self.peak = max(self.peak, self.live)
        self._requests.append(partial(Heap.allocate, number=self._numbers, size=size))
        weakref.finalize(storage, self._gone, address, size)

    def _gone(self, address: int, size: int) -> None:
        self.live -= size
        self._requests.append(partial(Heap.release, number=self._alive.pop(address)))


def _positions(index: Tensor | None) -> Iterable[Tensor | None]:
    """An index of truth values as whole numbers, of which there are as many as the result has rows."""
    if index is None or isinstance(index, FakeTensor) or index.dtype != torch.bool:
        return (index,)
    return index.nonzero().unbind(1)


def _makes_node(func: Any) -> bool:
    """Whether autograd notes an operation on what wants a gradient."""
    name = func.__name__.partition(".")[0]
    return func.namespace == "aten" and name != "detach" and not name.endswith("_like")


def _resident() -> int:
    """Memory that the process holds now, in bytes; where that cannot be read, the most that it has held."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return peak_memory()


def _unread(parameters: Iterable[nn.Parameter]) -> int:
    """Bytes of weights that are mapped from a checkpoint's files, and become resident when they are first read."""
    try:
        lines = Path("/proc/self/smaps").read_text().splitlines()
    except OSError:
        return 0
    places = sorted(parameter.data_ptr() for parameter in parameters)
    missing, counts = 0, False
    for line in lines:
        first, *rest = line.split()
        if not first.endswith(":"):
            start, _, end = first.partition("-")
            at = bisect_left(places, int(start, 16))
            # The fourth field is the file's number, 0 where there is none.
            counts = rest[3] != "0" and at < len(places) and places[at] < int(end, 16)
        elif counts and first in ("Size:", "Rss:"):
            missing += int(rest[0]) * 1024 * (1 if first == "Size:" else -1)
    return missing
