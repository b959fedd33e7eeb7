"""Ctrl-C as a question, and the ways in which memory runs out as one line."""

from __future__ import annotations

import os
import signal
import threading

import pytest
import torch

from capaft.support.errors import PeerError, TrainingError
from capaft.training.interrupt import interruptible, memory_guard


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_stops(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with interruptible() as asked:
        assert not asked()
        os.kill(os.getpid(), number)
        assert asked()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_beside_the_main_thread_signals_are_the_callers() -> None:
    before, seen = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        with interruptible() as asked:
            seen.append((asked(), signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, before)]


@pytest.mark.parametrize(
    ("raised", "says"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
            "the accelerator is out of memory; lower",
        ),
        (MemoryError(), "out of memory; lower --micro-batch-size"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory; lower"),
    ],
)
def test_memory_that_runs_out(raised: Exception, says: str) -> None:
    with pytest.raises(TrainingError) as error, memory_guard():
        raise raised
    assert str(error.value).startswith(says)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("raised", [RuntimeError("shapes differ"), PeerError("another"), KeyboardInterrupt()])
def test_what_is_something_else_stays_what_it_is(raised: BaseException) -> None:
    with pytest.raises(type(raised)) as error, memory_guard():
        raise raised
    assert error.value is raised
