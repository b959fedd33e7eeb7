"""The heap of a process that trains on a CPU: how far it grows, found by asking it.

glibc's `posix_memalign`, which torch calls, cuts a sliver off either end of a block; small objects of the autograd
graph settle in the slivers, and the room between them is then too small for the next block of that size. A heap holds
up to three times what lives in it, and no formula tells how much. So the allocator itself is asked: the same blocks,
and small objects like those of autograd, are allocated in the order in which training would, and never written to, so
that they take addresses and no memory.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Request = Callable[["Heap"], None]
"""Asks the heap for something, or gives it back."""

# Later steps find room between what earlier ones left behind: after so many the heap hardly grows.
STEPS = 4


@dataclass(frozen=True)
class Requests:
    """What training asks of the heap.

    Attributes:
        first: in the first step.
        later: in any later one.
        evaluation: in a forward without gradients.
        saved: bytes of each tensor in a checkpoint.
    """

    first: Sequence[Request]
    later: Sequence[Request]
    evaluation: Sequence[Request]
    saved: Sequence[int]


def growth(requests: Requests) -> int:
    """By how many bytes the heap of this process would grow at most; 0 where it cannot be asked.

    Raises:
        MemoryError: there are not even addresses for so much.
    """
    heap = Heap.of_glibc()
    if heap is None:
        return 0
    try:
        heap.play(requests.first)
        for part in (*[requests.later] * STEPS, requests.evaluation):
            heap.play_again(part)
        heap.save(requests.saved)
        heap.play_again(requests.later)
    finally:
        heap.release_all()
    return heap.grown


_INFO = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")


class _Info(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_ = tuple((name, ctypes.c_size_t) for name in _INFO)


class Heap:
    """The heap of this process, with the blocks that it was asked for here.

    Attributes:
        grown: by how many bytes it has grown at most.
    """

    ALIGNMENT = 64
    # A smaller block does not move the end of the heap by much, and is not worth asking about.
    SMALL = 2**16
    # What torch 2.13 allocates beside a storage, and for a node of the graph with its edges and sizes, in bytes.
    STORAGE, TENSOR = 96, (176, 24)
    NODE, PRODUCT_NODE = (488, 16, 24), (800, 64, 16, 16, 16, 16)

    @staticmethod
    def of_glibc() -> Heap | None:
        """None where the C library is another: those of macOS and Alpine give large blocks back."""
        library = ctypes.CDLL(None) if sys.platform == "linux" else None
        return Heap(library) if hasattr(library, "mallinfo2") else None

    def __init__(self, library: Any) -> None:
        library.mallinfo2.restype = _Info
        library.posix_memalign.argtypes = (ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t, ctypes.c_size_t)
        library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
        library.free.argtypes = (ctypes.c_void_p,)
        self._library = library
        self._blocks: dict[int, list[int]] = {}
        self._graph: list[int] = []
        self._start = self._held()
        self.grown = 0

    def allocate(self, number: int, size: int) -> None:
        """A storage of so many bytes with its tensor, known by a number.

        Raises:
            MemoryError: there are no addresses left.
        """
        block = ctypes.c_void_p()
        small = [self._library.malloc(self.STORAGE)]
        failed = self._library.posix_memalign(block, self.ALIGNMENT, size)
        small += [self._library.malloc(each) for each in self.TENSOR]
        self._blocks[number] = [*([] if block.value is None else [block.value]), *small]
        if failed:
            raise MemoryError
        if size >= self.SMALL:
            self.grown = max(self.grown, self._held() - self._start)

    def release(self, number: int) -> None:
        """Give a storage and its tensor back; nothing if there is none of that number."""
        for block in self._blocks.pop(number, ()):
            self._library.free(block)

    def node(self, is_product: bool) -> None:
        """A node of the autograd graph."""
        self._graph += [self._library.malloc(size) for size in (self.PRODUCT_NODE if is_product else self.NODE)]

    def forget_graph(self) -> None:
        """Give all nodes back, the last first."""
        while self._graph:
            self._library.free(self._graph.pop())

    def play(self, requests: Sequence[Request]) -> None:
        """Do what was asked."""
        for request in requests:
            request(self)

    def play_again(self, requests: Sequence[Request]) -> None:
        """The same, and give back what it leaves, so that it can be asked another time."""
        before = set(self._blocks)
        self.play(requests)
        for number in self._blocks.keys() - before:
            self.release(number)

    def save(self, sizes: Sequence[int]) -> None:
        """What `write` takes: each tensor's bytes, then all in one, and these once more."""
        numbers = [-1 - at for at in range(len(sizes))]
        for number, size in zip(numbers, sizes, strict=True):
            self.allocate(number, size)
        self.allocate(-len(sizes) - 1, sum(sizes))
        for number in numbers:
            self.release(number)
        self.allocate(-1, sum(sizes))
        self.release(-1)
        self.release(-len(sizes) - 1)

    def release_all(self) -> None:
        """Give everything back."""
        self.forget_graph()
        for number in list(self._blocks):
            self.release(number)

    def _held(self) -> int:
        info = self._library.mallinfo2()
        return int(info.arena + info.hblkhd)
