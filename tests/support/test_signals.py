"""Requests to stop: what counts as one, and what a process does about it when."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import capaft
from capaft.support import signals
from capaft.support.signals import Stopped, interruptible, uninterrupted


@pytest.mark.parametrize("number", signals.SIGNALS)
def test_the_first_signal_asks_and_one_much_later_stops(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(number)
    with interruptible() as asked:
        assert not asked()
        os.kill(os.getpid(), number)
        assert asked()
        # Schedulers and shells send several.
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), number)
        monkeypatch.setattr(signals, "SAME_REQUEST_SECONDS", 0.0)
        with pytest.raises(Stopped, match="stopped by "):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before
    with interruptible() as asked:
        assert not asked()


def test_beside_the_main_thread_signals_are_the_callers() -> None:
    before, seen = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        with interruptible() as asked:
            seen.append((asked(), signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, before)]


def test_a_signal_that_is_ignored_stays_so() -> None:
    """As SIGHUP under `nohup`."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible() as asked:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not asked()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_an_interrupt_reaches_a_command_in_the_background() -> None:
    """A shell has it ignored there."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruptible() as asked:
            os.kill(os.getpid(), signal.SIGINT)
            assert asked()
    finally:
        signal.signal(signal.SIGINT, before)


def test_what_must_not_be_cut_is_finished_first() -> None:
    done = []

    def work() -> None:
        with uninterrupted():
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("all of it")

    with pytest.raises(Stopped, match="stopped by SIGTERM"):
        work()
    assert done == ["all of it"]


START = """
import atexit, os, signal, sys, time
from capaft.support import signals
def send(name="SIGTERM"): os.kill(os.getpid(), getattr(signal, name)); time.sleep(0.01)
def tidy(): print("tidied", flush=True)
with signals.watched():
"""
DESTRUCTOR = "class Last:\n        def __del__(self): send()\n    last = Last(); del last; print('goes on')"


@pytest.mark.parametrize(
    ("work", "code", "out", "err"),
    [
        ("send()", 130, "", "stopped by SIGTERM\n"),
        ("send('SIGHUP')", 130, "", "stopped by SIGHUP\n"),
        ("send('SIGINT')", 130, "", "stopped by Ctrl-C\n"),
        # Only one process of a run speaks.
        ("os.environ['RANK'] = '1'; send()", 130, "", ""),
        # A destructor cannot pass an exception on.
        (f"signals.unwind_from_here()\n    {DESTRUCTOR}", 130, "", "stopped by SIGTERM\n"),
        # Tidying up takes its time, whatever else arrives at first.
        (
            "signals.unwind_from_here()\n    try: send()\n    except KeyboardInterrupt: send(); tidy()",
            0,
            "tidied\n",
            "",
        ),
        # While the interpreter ends.
        ("pass\natexit.register(lambda: send()); tidy()", 130, "tidied\n", "stopped by SIGTERM\n"),
    ],
)
def test_a_process_that_is_watched(work: str, code: int, out: str, err: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(capaft.__file__).parent.parent)}
    program = [sys.executable, "-c", f"{START}    {work}"]
    done = subprocess.run(program, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (code, out, err)
