"""Batches that fit into memory: one that does not is halved, and the work goes on."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from capaft.support.errors import TrainingError
from capaft.support.out_of_memory import is_out_of_memory
from capaft.training.parallel.processes import Processes

T = TypeVar("T")


@dataclass
class FittingBatch:
    """Number of features that a forward without gradients can take.

    Attributes:
        limit: largest number to try; None until memory has run out.
    """

    limit: int | None = None

    def in_parts(
        self, indices: Sequence[int], forward: Callable[[Sequence[int]], T]
    ) -> Iterator[tuple[Sequence[int], T]]:
        """Call a function with a batch, in parts if it does not fit into memory.

        Args:
            indices: the batch.
            forward: called with a part of it; again with half of the part if memory runs out.

        Returns:
            The parts with their results, every index in one of them.

        Raises:
            TrainingError: memory runs out with a single feature.
        """
        waiting = indices
        while waiting:
            part = waiting[: self.limit]
            try:
                result = forward(part)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if len(part) == 1:
                    raise TrainingError(
                        "out of memory with a single example in evaluation; lower --max-length, or take a smaller base "
                        "model or a machine with more memory"
                    ) from None
            else:
                yield part, result
                waiting = waiting[len(part) :]
                continue
            # Only here: while the error lives, so does all that the forward had allocated.
            torch.cuda.empty_cache()
            self._lower(len(part) // 2)

    def agree(self, processes: Processes) -> None:
        """Take the smallest limit of all processes."""
        limits = [limit for limit in processes.gather([self.limit]) if limit is not None]
        if limits and min(limits) != self.limit:
            self._lower(min(limits))

    def _lower(self, limit: int) -> None:
        self.limit = limit
        examples = "example" if limit == 1 else "examples"
        warnings.warn(f"out of memory in evaluation; going on with batches of {limit} {examples}", stacklevel=3)
