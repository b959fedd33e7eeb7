"""Exhausted memory, which ends a run from outside, as one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from capaft.support.errors import CapaftError, TrainingError
from capaft.support.out_of_memory import is_of_accelerator, is_out_of_memory

_ADVICE = "lower --micro-batch-size, --eval-batch-size or --max-length, or turn on --gradient-checkpointing"


@contextmanager
def memory_guard() -> Iterator[None]:
    """Turns the many forms of running out of memory into one line.

    Raises:
        TrainingError: memory ran out.
    """
    try:
        yield
    except CapaftError:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        of = "the accelerator is " if is_of_accelerator(error) else ""
        raise TrainingError(f"{of}out of memory; {_ADVICE}") from None
