"""How much memory training will take at its peak, found without taking it.

A few steps run on a hollow copy of the model, whose tensors have shapes and no contents (torch's `FakeTensor`), and a
dispatch mode counts the storages that come and go. That is all that an accelerator holds. A process also holds what is
there before the first step, and what glibc's `malloc` cannot give back: `posix_memalign`, which torch calls, cuts a
sliver off either end of a block, small objects settle in the slivers, and the block's room is then too small for the
next of its size. The heap grows to twice what lives in it and more. No formula tells, so the allocator itself is asked:
the blocks that are counted are also allocated, and never written to, so that they take addresses and no memory.
"""

from __future__ import annotations

import copy
import ctypes
import importlib
import resource
import sys
import weakref
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext, suppress
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

from capaft import optimiser
from capaft.journal import peak_memory
from capaft.tasks.task import Batch

Loss = Callable[[Any, Mapping[str, Tensor]], Tensor]

# After so many steps the heap has grown to nearly its final size.
STEPS = 3
# How much more is lost in the heap of a run than in that of a rehearsal, where Python's objects come and go between
# any two operations.
LOST = 1.4
# Pages of torch's and MKL's libraries that the first step reads, and MKL's buffers: 9 to 15 MiB where measured.
LIBRARIES = 12 * 2**20
# What a run imports that a dry run need not: to fit a head, and to draw the losses.
IMPORTED_LATER = ("sklearn.linear_model", "matplotlib.figure")
# A mask over all pairs of tokens can be large; what has more numbers is fake in any case.
MOST_CONTENTS = 2**20
# torch's caching allocator hands out multiples of this (kMinBlockSize, c10/cuda/CUDACachingAllocator.cpp).
CUDA_BLOCK = 512
# bitsandbytes keeps the state of smaller parameters in float32 (`min_8bit_size`).
EIGHT_BIT_FROM = 4096


def estimate(
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
        optimizer: name of the optimiser; see :func:`capaft.optimiser.build`.
        autocast: what operations compute in under autocast; None without.
        accumulates: whether a step adds up the gradients of several such batches.
        evaluated: the evaluation batch that takes most memory.
        device: where training runs; by default where the model is.

    Returns:
        None where it cannot be told: mostly because what the model's code does depends on what its tensors hold.
    """
    device = device or next(model.parameters()).device
    shadow = resident = None
    if device.type == "cpu":
        for name in IMPORTED_LATER:
            with suppress(ImportError):
                importlib.import_module(name)
        resident = _resident() + _unread(model.parameters()) + LIBRARIES
        shadow = _Shadow.of_glibc()
    counting = _Counting(device, shadow)
    try:
        _rehearse(counting, model, batch, loss, optimizer, autocast, accumulates, evaluated)
    # What code trips over that finds tensors without contents can be anything, and a dry run goes on without a number.
    except Exception:
        return None
    finally:
        counting.forget()
    if resident is None:
        return counting.peak
    grown = counting.peak - counting.weights
    if shadow:
        grown = shadow.peak + int((LOST - 1) * max(0, shadow.peak - grown))
    return max(resident + grown, peak_memory())


def _rehearse(
    counting: _Counting,
    model: nn.Module,
    batch: Batch,
    loss: Loss,
    optimizer: str,
    autocast: torch.dtype | None,
    accumulates: bool,
    evaluated: Batch | None,
) -> None:
    """Steps, an evaluation and a checkpoint, as :func:`capaft.train.train` makes them."""
    device = counting.device
    with counting.fake, _Hollow(device):
        hollow = copy.deepcopy(model)
    counting.hold(hollow)
    trained = [parameter for parameter in hollow.parameters() if parameter.requires_grad]

    def forward(batch: Batch) -> Any:
        with torch.autocast(device.type, autocast) if autocast else nullcontext():
            return hollow(**{name: tensor.to(device) for name, tensor in batch.inputs.items()})

    def backward() -> None:
        outputs = forward(batch)
        loss(outputs, {name: tensor.to(device) for name, tensor in batch.targets.items()}).backward()

    with counting:
        built = _optimiser(optimizer, trained)
        for _ in range(STEPS):
            backward()
            if accumulates:
                backward()
            with counting.guessing():
                torch.nn.utils.clip_grad_norm_(trained, 1.0)
                built.step()
            built.zero_grad()
        if evaluated:
            hollow.eval()
            with torch.no_grad():
                forward(evaluated)
        if counting.shadow:
            states = (value for state in built.state.values() for value in state.values() if isinstance(value, Tensor))
            counting.shadow.save([tensor.numel() * tensor.element_size() for tensor in (*trained, *states)])


def _optimiser(name: str, trained: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser that will be used, or one whose state is as large."""
    if name == "adamw-8bit":
        return _EightBit(trained, {})
    return optimiser.build(name, [{"params": trained, "lr": 1e-3}])


class _EightBit(torch.optim.Optimizer):
    """What bitsandbytes' 8-bit Adam holds: two numbers a parameter of a byte each, and a scale for each 256.

    Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization", arXiv 2110.02861.
    """

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Make the state, if there is none."""
        for parameter in self.param_groups[0]["params"]:
            small = parameter.numel() < EIGHT_BIT_FROM
            if parameter not in self.state:
                self.state[parameter] = {
                    name: torch.zeros_like(parameter, dtype=torch.float32 if small else torch.uint8)
                    for name in ("state1", "state2")
                }
                if not small:
                    blocks = -(-parameter.numel() // 256)
                    self.state[parameter]["absmax"] = parameter.new_zeros(2, blocks, dtype=torch.float32)


class _Hollow(TorchFunctionMode):
    """Makes deep copies of tensors without contents. Whatever a copy is made of must be under a fake mode."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.__deepcopy__:
            tensor, memo = args
            if id(tensor) not in memo:
                memo[id(tensor)] = self._empty(tensor).requires_grad_(tensor.requires_grad)
            return memo[id(tensor)]
        # Parameters copy themselves in Python, and this is the part that copies.
        if func is torch.Tensor.clone:
            return self._empty(args[0])
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    def _empty(self, tensor: Tensor) -> Tensor:
        with torch._C.DisableTorchFunctionSubclass():
            return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=self.device)


class _Counting(TorchDispatchMode):
    """Counts the bytes of all storages that live while it is on.

    What a model is given keeps its contents, and so does all that is computed from that alone: masks, and which of the
    tokens count, decide what code goes on to do. Everything else is fake.
    """

    def __init__(self, device: torch.device, shadow: _Shadow | None) -> None:
        super().__init__()
        self.device = device
        self.shadow = shadow
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.weights = self.live = self.peak = 0
        self._alive: dict[int, weakref.finalize[Any, Any]] = {}
        self._guesses = False

    def hold(self, model: nn.Module) -> None:
        """Count a model's tensors, which are there before training."""
        shadow, self.shadow = self.shadow, None
        for tensor in (*model.parameters(), *model.buffers()):
            self._count(tensor)
        self.shadow, self.weights = shadow, self.live

    def forget(self) -> None:
        """Count no more, and give the shadow's blocks back."""
        for each in list(self._alive.values()):
            each()

    def guessing(self) -> _Guessing:
        """For as long as the context lasts, numbers that are asked of fake tensors are 1."""
        return _Guessing(self)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        fakes = [tensor for tensor in given if isinstance(tensor, FakeTensor)]
        if fakes and self._guesses and func is torch.ops.aten._local_scalar_dense.default:
            return 1.0
        if fakes and func is torch.ops.aten.index.Tensor:
            args = (args[0], [each for index in args[1] for each in _positions(index)])
        result = func(*args, **kwargs) if fakes else self._of_contents(func, args, kwargs, bool(given))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf)
        return result

    def _of_contents(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], given: bool) -> Any:
        """What an operation makes of no tensors, which is fake, or of those with contents, which is not if small."""
        try:
            with self.fake:
                result = func(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException):
            return func(*args, **kwargs)
        numbers = sum(leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        return func(*args, **kwargs) if given and numbers <= MOST_CONTENTS else result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive or not size:
            return
        if self.device.type == "cuda":
            size = -(-size // CUDA_BLOCK) * CUDA_BLOCK
        self.live += size
        self.peak = max(self.peak, self.live)
        # What is no fake lies in the heap as it is.
        block = self.shadow.allocate(size) if self.shadow and isinstance(tensor, FakeTensor) else None
        self._alive[key] = weakref.finalize(storage, self._gone, key, size, block)

    def _gone(self, key: int, size: int, block: int | None) -> None:
        del self._alive[key]
        self.live -= size
        if block and self.shadow:
            self.shadow.free(block)


class _Guessing:
    def __init__(self, counting: _Counting) -> None:
        self.counting = counting

    def __enter__(self) -> None:
        self.counting._guesses = True

    def __exit__(self, *error: object) -> None:
        self.counting._guesses = False


def _positions(index: Tensor | None) -> Iterable[Tensor | None]:
    """An index of truth values as whole numbers, of which there are as many as the result has rows."""
    is_known = index is not None and index.dtype == torch.bool and not isinstance(index, FakeTensor)
    return index.nonzero().unbind(1) if index is not None and is_known else (index,)


class _Info(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in [
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        ]
    )


class _Shadow:
    """Blocks of memory that nobody writes to, from the allocator that torch uses; they show how far it grows."""

    # A smaller block does not move the end of the heap by much, and is not worth asking about.
    SMALL = 2**16
    ALIGNMENT = 64

    @staticmethod
    def of_glibc() -> _Shadow | None:
        """None where the C library is another: those of macOS and Alpine give large blocks back."""
        library = ctypes.CDLL(None) if sys.platform == "linux" else None
        return _Shadow(library) if hasattr(library, "mallinfo2") else None

    def __init__(self, library: Any) -> None:
        self.library = library
        library.mallinfo2.restype = _Info
        library.posix_memalign.argtypes = (ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t, ctypes.c_size_t)
        library.free.argtypes = (ctypes.c_void_p,)
        self.peak = 0
        self._start = self._held()

    def allocate(self, size: int) -> int | None:
        """A block, or None where not even addresses are left; then there is no memory for it either."""
        block = ctypes.c_void_p()
        if self.library.posix_memalign(block, self.ALIGNMENT, size):
            return None
        if size >= self.SMALL:
            self.peak = max(self.peak, self._held() - self._start)
        return block.value

    def free(self, block: int) -> None:
        """Give a block back."""
        self.library.free(block)

    def save(self, sizes: list[int]) -> None:
        """What writing a checkpoint takes: each tensor's bytes, then all, and these once more to sum them up."""
        parts = [self.allocate(size) for size in sizes]
        whole = self.allocate(sum(sizes))
        for block in parts:
            self.free(block or 0)
        again = self.allocate(sum(sizes))
        self.free(again or 0)
        self.free(whole or 0)

    def _held(self) -> int:
        info = self.library.mallinfo2()
        return int(info.arena + info.hblkhd)


def _resident() -> int:
    """Memory that the process holds now, in bytes; where that cannot be read, the most that it has held."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
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
