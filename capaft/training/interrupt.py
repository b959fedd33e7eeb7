"""Signals and exhausted memory, which end a run from outside, turned into something the loop can answer."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from capaft.support.errors import CapaftError, TrainingError
from capaft.support.out_of_memory import is_of_accelerator, is_out_of_memory

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
    except CapaftError:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        of = "the accelerator is " if is_of_accelerator(error) else ""
        raise TrainingError(f"{of}out of memory; {_ADVICE}") from None
