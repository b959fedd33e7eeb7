"""The processes of a run, and their messages: counts, gradients of the trainable parameters, predictions.

The base model is never wrapped and nothing of it travels. Every process derives the same basis and masks from the seed
and holds the same trainable parameters; after each backward their gradients, a few kilobytes in one piece, are added
up, so that all processes take the same step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from capaft.support.errors import PeerError, TrainingError

# Words in the messages of the libraries underneath when another process does not answer.
_LOST = ("gloo", "NCCL", "Connection", "Broken pipe")


@dataclass
class Processes:
    """One process among those of the run; alone, nothing is communicated.

    Methods that need the others raise `PeerError` if one of them has ended.

    Attributes:
        rank: number of this process, from 0.
        count: number of processes.
        bytes_sent: bytes of gradients that each process has sent so far.
    """

    rank: int
    count: int
    bytes_sent: int = 0
    _host: Any = field(default=None, repr=False)

    @staticmethod
    def here() -> Processes:
        """The processes of the process group that is set up, or this one alone."""
        if not (dist.is_available() and dist.is_initialized()):
            return Processes(0, 1)
        # Counts stay on the host: reading them from an accelerator would make it wait.
        host = dist.new_group(backend="gloo") if dist.get_backend() != "gloo" else dist.group.WORLD
        return Processes(dist.get_rank(), dist.get_world_size(), _host=host)

    @property
    def is_first(self) -> bool:
        """True for the process that writes and speaks."""
        return self.rank == 0

    def failure(self, message: str) -> TrainingError:
        """The error to raise where every process knows of it: the first reports it, the others end silently."""
        return (TrainingError if self.is_first else PeerError)(message)

    def totals(self, *numbers: float) -> list[float]:
        """Each number, summed over the processes."""
        if self.count == 1:
            return list(numbers)
        total = torch.tensor(numbers, dtype=torch.float64, device="cpu")
        with _answered():
            dist.all_reduce(total, group=self._host)
        return [float(number) for number in total.tolist()]

    def add_up(self, parameters: Sequence[nn.Parameter]) -> None:
        """Make each parameter's gradient the sum of all processes' gradients, bit for bit the same in each."""
        if self.count == 1:
            return
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        with _answered():
            dist.all_reduce(flat)
        self.bytes_sent += flat.nbytes
        pieces = flat.split([p.numel() for p in parameters])
        for parameter, piece in zip(parameters, pieces, strict=True):
            parameter.grad = piece.view_as(parameter)

    def sum_of(self, tensor: Tensor) -> Tensor:
        """A tensor, summed over the processes."""
        if self.count > 1:
            with _answered():
                dist.all_reduce(tensor)
        return tensor

    def gather(self, items: Iterable[Any]) -> list[Any]:
        """The items of all processes, in the order of the processes."""
        if self.count == 1:
            return list(items)
        parts: list[Any] = [None] * self.count
        with _answered():
            dist.all_gather_object(parts, list(items), group=self._host)
        return [item for part in parts for item in part]

    def from_first(self, value: Any) -> Any:
        """The first process's value, in all of them."""
        if self.count == 1:
            return value
        box = [value]
        with _answered():
            dist.broadcast_object_list(box, src=0, group=self._host)
        return box[0]


@contextmanager
def _answered() -> Iterator[None]:
    """Turns the errors of talking to a process that has ended into one line.

    Raises:
        PeerError: another process stopped responding.
    """
    try:
        yield
    except RuntimeError as error:
        if any(word in str(error) for word in _LOST):
            reason = " ".join(str(error).split())[:200]
            raise PeerError(
                f"another process of this run stopped responding; see its own error above, if any ({reason})"
            ) from None
        raise
