"""Signals and exhausted memory, which end a run from outside, turned into something the loop can answer."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import torch

from capaft.support.errors import TrainingError

# Ctrl-C, and the signal that a queue sends before it takes the machine away.
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_ADVICE = "lower --micro-batch-size, --eval-batch-size or --max-length, or turn on --gradient-checkpointing"


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Turns the first Ctrl-C or request to end into a question the loop can ask; a second one stops at once."""
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    # Only the main thread may take over signals; elsewhere they stay with the caller.
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, ask) for number in _SIGNALS if main}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
