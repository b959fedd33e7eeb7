"""What may end a run from outside, turned into something the loop can answer: Ctrl-C, and memory that runs out."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import torch

from capaft.errors import TrainingError

_ADVICE = "lower --micro-batch-size, --eval-batch-size or --max-length, or turn on --gradient-checkpointing"


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Turns the first Ctrl-C into a question the loop can ask; a second one stops at once."""
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    # Only the main thread may take over signals; elsewhere Ctrl-C stays with the caller.
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, ask) if main else None
    try:
        yield lambda: asked
    finally:
        if main:
            signal.signal(signal.SIGINT, before)


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
