"""Estimate of the peak memory of training, made without taking that memory.

Two steps run on a hollow copy of the model, whose tensors have shapes and no contents (torch's `FakeTensor`), and a
dispatch mode counts the storages that come and go. That is all that an accelerator holds. A process on a CPU also holds
what is resident before the first step, what it loads later, and what its heap loses to fragmentation. Two measured
constants stand for the last two, so that there the estimate is only about right.
"""

from __future__ import annotations

import copy
import os
import weakref
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
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

from capaft.model.weights import device_of
from capaft.tasks.base.features import Batch
from capaft.training.accelerator import peak_memory
from capaft.training.optimizer import build_optimizer

Loss = Callable[[Any, Mapping[str, Tensor]], Tensor]

# Both measured with benchmarks/memory.py. A run loads scikit-learn and matplotlib, which a dry run need not, and its
# first step reads pages of torch's and MKL's libraries and makes their buffers.
LOADED_LATER = 60 * 2**20
# Bytes by which glibc's heap grows for each byte that lives in it: 1.1 to 1.9 where measured, 2.4 with checkpointing.
HEAP_FACTOR = 1.4
# Larger blocks never lie in that heap (DEFAULT_MMAP_THRESHOLD_MAX, malloc/malloc.c).
HEAP_BLOCK = 32 * 2**20
# torch's caching allocator hands out multiples of this (kMinBlockSize, c10/cuda/CUDACachingAllocator.cpp).
CUDA_BLOCK = 512
# A mask over all pairs of tokens can be large; a tensor with more elements is always hollow.
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
    evaluated: Sequence[Batch] = (),
    device: torch.device | None = None,
) -> int | None:
    """Estimate the peak memory of training in bytes: of the accelerator, or on a CPU of the process.

    Args:
        model: ready to train: with its adapter, in training mode. It is not changed.
        batch: the training batch that takes most memory.
        loss: the differentiated scalar, from the model's outputs and the batch's targets.
        optimizer: name of the optimizer; see `build_optimizer`.
        autocast: what operations compute in under autocast; None without.
        accumulates: whether a step adds up the gradients of several such batches.
        evaluated: the evaluation batches of which one takes most memory.
        device: where training runs; by default where the model is.

    Returns:
        None if it cannot be determined, mostly because the model's code depends on values of its tensors.
    """
    device = device or device_of(model)
    on_cpu = device.type == "cpu"
    resident = _resident() + _unread(model.parameters()) + LOADED_LATER if on_cpu else 0
    try:
        weights, peak = _rehearse(model, batch, loss, optimizer, autocast, accumulates, evaluated, device)
    # Code that stumbles over tensors without contents raises anything, and a dry run goes on without an estimate.
    except Exception:
        return None
    return max(resident + peak - weights, peak_memory()) if on_cpu else peak


def _rehearse(
    model: nn.Module,
    batch: Batch,
    loss: Loss,
    optimizer: str,
    autocast: torch.dtype | None,
    accumulates: bool,
    evaluated: Sequence[Batch],
    device: torch.device,
) -> tuple[int, int]:
    """Do what `train` does, on a hollow copy of the model.

    Returns:
        Bytes of the model before the first step, and the most bytes that lived at the same time, the model included.
    """
    counting = _Counting(device)
    with counting.fake, _Copying(device):
        hollow = copy.deepcopy(model)
    for tensor in (*hollow.parameters(), *hollow.buffers()):
        counting.count(tensor)
    weights = counting.live
    trained = [parameter for parameter in hollow.parameters() if parameter.requires_grad]
    built = _sized_optimizer(optimizer, trained)

    def forward(batch: Batch) -> Any:
        with torch.autocast(device.type, autocast) if autocast else nullcontext():
            return hollow(**{name: tensor.to(device) for name, tensor in batch.inputs.items()})

    def forward_loss(batch: Batch) -> Tensor:
        outputs = forward(batch)
        return loss(outputs, {name: tensor.to(device) for name, tensor in batch.targets.items()})

    def backward() -> None:
        forward_loss(batch).backward()

    def step() -> None:
        backward()
        if accumulates:
            backward()
        with counting.guessing():
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            built.step()
        built.zero_grad()

    with counting:
        step()
        step()
        hollow.eval()
        with torch.no_grad():
            for largest in evaluated:
                forward_loss(largest)
    if device.type != "cpu":
        return weights, counting.peak
    # A checkpoint holds every tensor twice while it is written: by itself, and in the file's bytes.
    states = (value for state in built.state.values() for value in state.values() if isinstance(value, Tensor))
    saved = sum(tensor.numel() * tensor.element_size() for tensor in (*trained, *states))
    return weights, max(counting.peak, counting.live + round(HEAP_FACTOR * 2 * saved))


def _sized_optimizer(name: str, trained: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The named optimizer, or a stand-in whose state is as large."""
    if name == "adamw-8bit":
        return _EightBit(trained, {})
    return build_optimizer(name, [{"params": trained, "lr": 1e-3}])


class _EightBit(torch.optim.Optimizer):
    """Stand-in for bitsandbytes' 8-bit Adam: two bytes for each parameter, and two scales for each 256.

    Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization", arXiv 2110.02861.
    """

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Allocate the state in the first step."""
        for parameter in self.param_groups[0]["params"]:
            state = self.state[parameter]
            if not state:
                eight = parameter.numel() >= EIGHT_BIT_FROM
                for name in ("state1", "state2"):
                    state[name] = torch.zeros_like(parameter, dtype=torch.uint8 if eight else torch.float32)
                if eight:
                    state["absmax"] = parameter.new_zeros(2, -(-parameter.numel() // 256), dtype=torch.float32)


class _Copying(TorchFunctionMode):
    """Makes deep copies of tensors empty, and under a fake mode hollow."""

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
    """Counts the bytes of all storages that live.

    A model's inputs have contents, and so has what is computed from them alone: masks, and which tokens count, decide
    what code does next. All else is hollow.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.live = self.peak = 0
        # Addresses of the storages that live.
        self._alive: set[int] = set()
        self._guesses = False

    @contextmanager
    def guessing(self) -> Iterator[None]:
        """Within this context the value of a hollow tensor is 1 where code asks for it."""
        self._guesses = True
        yield
        self._guesses = False

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        is_hollow = any(isinstance(tensor, FakeTensor) for tensor in inputs)
        if is_hollow and self._guesses and func is torch.ops.aten._local_scalar_dense.default:
            return 1.0
        if is_hollow and func is torch.ops.aten.index.Tensor:
            args = (args[0], [positions for index in args[1] for positions in _positions(index)])
        result = func(*args, **kwargs) if is_hollow else self._of_contents(func, args, kwargs, bool(inputs))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.count(leaf)
        return result

    def _of_contents(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], has_inputs: bool) -> Any:
        """Result of an operation without hollow inputs: hollow, unless it is small and computed from tensors."""
        try:
            with self.fake:
                result = func(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException):
            return func(*args, **kwargs)
        elements = sum(leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        return func(*args, **kwargs) if has_inputs and elements <= MOST_CONTENTS else result

    def count(self, tensor: Tensor) -> None:
        """Count a tensor's storage, once."""
        storage = tensor.untyped_storage()
        address, size = storage._cdata, storage.nbytes()
        if address in self._alive or not size:
            return
        if self.device.type == "cuda":
            size = -(-size // CUDA_BLOCK) * CUDA_BLOCK
        elif self.device.type == "cpu" and size <= HEAP_BLOCK:
            size = round(HEAP_FACTOR * size)
        self._alive.add(address)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._gone, address, size)

    def _gone(self, address: int, size: int) -> None:
        self.live -= size
        self._alive.remove(address)


def _positions(index: Tensor | None) -> Iterable[Tensor | None]:
    """Turn a boolean index into row numbers, one for each row of the result."""
    if index is None or isinstance(index, FakeTensor) or index.dtype != torch.bool:
        return (index,)
    return index.nonzero().unbind(1)


def _resident() -> int:
    """Resident memory of the process in bytes; its peak so far where the present value cannot be read."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return peak_memory()


def _unread(parameters: Iterable[nn.Parameter]) -> int:
    """Bytes of weights mapped from a checkpoint's files that become resident when they are first read."""
    try:
        lines = Path("/proc/self/smaps").read_text().splitlines()
    except OSError:
        return 0
    addresses = sorted(parameter.data_ptr() for parameter in parameters)
    missing, counts = 0, False
    for line in lines:
        first, *fields = line.split()
        if not first.endswith(":"):
            start, _, end = first.partition("-")
            at = bisect_left(addresses, int(start, 16))
            # The fourth of these fields is the file's inode, 0 without a file.
            counts = fields[3] != "0" and at < len(addresses) and addresses[at] < int(end, 16)
        elif counts and first in ("Size:", "Rss:"):
            missing += int(fields[0]) * 1024 * (1 if first == "Size:" else -1)
    return missing
