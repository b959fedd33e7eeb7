"""The processes of a run, and their messages: counts, gradients of the trainable parameters, predictions.

The base model is never wrapped and nothing of it travels. Every process derives the same basis and masks from the seed
and holds the same trainable parameters; after each backward their gradients, a few kilobytes in one piece, are added
up, so that all processes take the same step.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from capaft.support.errors import PeerError, TrainingError, one_line
from capaft.training.parallel.launch import is_launched

# Words in the messages of the libraries underneath when another process has ended, or does not answer in time.
_LOST = ("gloo", "NCCL", "Connection", "Broken pipe")
_LATE = ("Timed out", "timed out", "timeout")
# Time for the others to say that they are waiting too, once one has given up.
_ROLL_CALL_SECONDS = 1.0


@dataclass
class Processes:
    """One process among those of the run; alone, nothing is communicated.

    Methods that need the others raise `PeerError` if one of them has ended.

    Attributes:
        rank: number of this process, from 0.
        count: number of processes.
        bytes_sent: bytes of gradients that each process has sent so far.
        timeout: seconds after which a process that does not answer is given up.
    """

    rank: int
    count: int
    bytes_sent: int = 0
    timeout: float = math.inf
    _host: Any = field(default=None, repr=False)

    @staticmethod
    def here(timeout: float) -> Processes:
        """The processes of the process group that is set up, or this one alone.

        Args:
            timeout: seconds that they wait for one another.
        """
        if not (dist.is_available() and dist.is_initialized()):
            return Processes(0, 1)
        processes = Processes(dist.get_rank(), dist.get_world_size(), timeout=timeout)
        # Counts stay on the host: reading them from an accelerator would make it wait.
        with processes.answered():
            processes._host = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
        return processes

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
        with self.answered():
            dist.all_reduce(total, group=self._host)
        return [float(number) for number in total.tolist()]

    def add_up(self, parameters: Sequence[nn.Parameter]) -> None:
        """Make each parameter's gradient the sum of all processes' gradients, bit for bit the same in each."""
        if self.count == 1:
            return
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = self.sum_of(torch.cat([gradient.flatten() for gradient in gradients]))
        self.bytes_sent += flat.nbytes
        pieces = flat.split([p.numel() for p in parameters])
        for parameter, piece in zip(parameters, pieces, strict=True):
            parameter.grad = piece.view_as(parameter)

    def sum_of(self, tensor: Tensor) -> Tensor:
        """A tensor, summed over the processes."""
        if self.count == 1:
            return tensor
        if tensor.device.type != "cpu":
            # An accelerator would wait without end, or abort, for a process that does not come.
            self.totals(0)
        with self.answered():
            dist.all_reduce(tensor, group=self._host if tensor.device.type == "cpu" else None)
        return tensor

    def gather(self, items: Iterable[Any]) -> list[Any]:
        """The items of all processes, in the order of the processes."""
        if self.count == 1:
            return list(items)
        parts: list[Any] = [None] * self.count
        with self.answered():
            dist.all_gather_object(parts, list(items), group=self._host)
        return [item for part in parts for item in part]

    def from_first(self, value: Any) -> Any:
        """The first process's value, in all of them."""
        if self.count == 1:
            return value
        box = [value]
        with self.answered():
            dist.broadcast_object_list(box, src=0, group=self._host)
        return box[0]

    @contextmanager
    def answered(self) -> Iterator[None]:
        """Turns the errors of talking to a process that has ended, or hangs, into one line.

        Raises:
            TrainingError: another process did not answer in time, and this one reports it.
            PeerError: another process has ended, or did not answer and another one reports it.
        """
        try:
            yield
        except RuntimeError as error:
            if any(word in str(error) for word in _LOST):
                raise self._loss(error) from None
            raise

    def _loss(self, error: RuntimeError) -> TrainingError:
        """The error to raise when the processes have lost one another."""
        is_late = any(word in str(error) for word in _LATE)
        present, is_reporter = self._roll_call(is_late=is_late)
        if "late" in present.values():
            silent = [rank for rank in range(self.count) if rank not in present]
            names = f"process{'es' * (len(silent) > 1)} {', '.join(map(str, silent))}" if silent else "a process"
            line = f"{names} did not answer for {self.timeout:g} s (--timeout); --resume goes on from the checkpoint"
            return TrainingError(line) if is_reporter else PeerError()
        if is_launched():
            return PeerError()
        return PeerError(
            f"another process of this run stopped responding; see its own error above, if any ({one_line(error)})"
        )

    def _roll_call(self, *, is_late: bool) -> tuple[dict[int, str], bool]:
        """Find out which processes still run.

        Args:
            is_late: this process gave up waiting; it did not lose the connection.

        Returns:
            `late` or `cut off` by each process that has lost another; and True in the one that is to report it.
        """
        state = "late" if is_late else "cut off"
        answers: list[tuple[dict[int, str], bool]] = []
        # In a thread, since a store does not answer at all while its process is stopped.
        asking = threading.Thread(target=lambda: answers.append(self._ask_store(state)), daemon=True)
        asking.start()
        asking.join(2 * _ROLL_CALL_SECONDS)
        # The first process keeps the store, so it is the one that does not answer.
        return answers[0] if answers else (dict.fromkeys(range(1, self.count), "late"), self.rank == 1)

    def _ask_store(self, state: str) -> tuple[dict[int, str], bool]:
        """Meet the processes that still run where all of them met at first; see `_roll_call`."""
        present = {self.rank: state}
        try:
            store = dist.distributed_c10d._get_default_store()
            store.set(f"capaft/{self.rank}", state)
            deadline = time.monotonic() + _ROLL_CALL_SECONDS
            while time.monotonic() < deadline and len(present) < self.count:
                for rank in set(range(self.count)) - present.keys():
                    if store.check([f"capaft/{rank}"]):
                        present[rank] = store.get(f"capaft/{rank}").decode()
                time.sleep(0.02)
            return present, store.add("capaft/reports", 1) == 1
        except RuntimeError:
            return dict.fromkeys(range(1, self.count), state), self.rank == 1
