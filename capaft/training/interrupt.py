"""Exhausted memory, which ends a run from outside, as one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from capaft.support.errors import TrainingError

_ADVICE = "lower --micro-batch-size, --eval-batch-size or --max-length, or turn on --gradient-checkpointing"


@contextmanager
def memory_guard() -> Iterator[None]:
    """Turns the many forms of running out of memory into one line.

    Raises:
        TrainingError: memory ran out.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise TrainingError(f"the accelerator is out of memory; {_ADVICE}") from None
    except MemoryError:
        raise TrainingError(f"out of memory; {_ADVICE}") from None
    except RuntimeError as error:
        if "can't allocate memory" in str(error):
            raise TrainingError(f"out of memory; {_ADVICE}") from None
        raise
