"""Requests to stop: Ctrl-C, a queue's SIGTERM, the SIGHUP of a closed terminal.

The first signal is the request. Queues, `timeout`, containers and shells send several, to a process and to its group,
so those that follow within two seconds count as the first; a later one insists, and the process stops at once. Ignored
signals, as under `nohup`, stay ignored.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Literal, NoReturn

from capaft.support.console import is_first_process

# Not every system has all of them.
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
SAME_REQUEST_SECONDS = 2.0
STOPPED = 130


class Stopped(KeyboardInterrupt):
    """A request to stop, raised where it arrived; the text names the signal."""


# A plain class: importing dataclasses takes longer than all that comes before signals are answered.
class _Requests:
    """The requests that a process has received, and the answer that it gives to the first.

    Attributes:
        answer: `leave` ends the process at once, `unwind` raises `Stopped`, `note` leaves it to who asks.
        cause: the signal of the first request; empty before it.
        first_at: the time of the first request.
        unwinds: `Stopped` has been raised.
    """

    def __init__(self, answer: Literal["leave", "unwind", "note"]) -> None:
        self.answer = answer
        self.cause = ""
        self.first_at = 0.0
        self.unwinds = False

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Answer a signal."""
        now = time.monotonic()
        if not self.cause:
            self.cause = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
            self.first_at = now
            if self.answer == "note":
                return
        elif now - self.first_at < SAME_REQUEST_SECONDS:
            return
        if self.answer == "leave" or self.unwinds:
            _leave(self.cause)
        self.unwind()

    def unwind(self) -> NoReturn:
        """Raise `Stopped`."""
        self.unwinds = True
        raise Stopped(f"stopped by {self.cause}")


# Those of the command line; in a program that only imports capaft, signals are the program's.
_watched: _Requests | None = None


@contextmanager
def watched() -> Iterator[None]:
    """Answers requests to stop for as long as the process lasts, from its first moments on.

    At first, and after the context, the answer is to leave at once with one line: an exception from the middle of an
    import would become anything.
    """
    global _watched
    requests = _watched = _Requests("leave")
    _listen(requests)
    # A launcher blocks the signals until here, lest they end a process that cannot answer yet.
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    # As the first to be registered it runs last: the interpreter's own end would bring back the default answer.
    atexit.register(_ignore)
    sys.unraisablehook = _leave_if_stopped
    try:
        yield
    finally:
        requests.answer = "leave"


def unwind_from_here() -> None:
    """Have a request to stop raise `Stopped` from now on, so that what has begun is tidied up."""
    if _watched:
        _watched.answer = "unwind"


def unwinding() -> str:
    """A line about the request that is ending the process, or nothing: whatever fails meanwhile fails by it."""
    return f"stopped by {_watched.cause}" if _watched and _watched.unwinds else ""


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Turns a request to stop into a question that can be asked; a later request raises `Stopped`."""
    with _noting() as requests:
        yield lambda: bool(requests.cause)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Puts a request to stop off to the end of the context.

    Raises:
        Stopped: there was one.
    """
    with _noting() as requests:
        yield
        if requests.cause:
            requests.unwind()


@contextmanager
def answering() -> Iterator[Callable[[], bool]]:
    """Turns Ctrl-C into a question that can be asked, and that is forgotten when the context ends.

    What it stops is one answer of a conversation, which goes on. A later Ctrl-C insists.
    """
    pressed: list[float] = []
    before = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: FrameType | None) -> None:
        if pressed and time.monotonic() - pressed[0] >= SAME_REQUEST_SECONDS and callable(before):
            before(number, frame)
        pressed.append(time.monotonic())

    with _ctrl_c(note):
        yield lambda: bool(pressed)


@contextmanager
def listening() -> Iterator[None]:
    """Has Ctrl-C raise `KeyboardInterrupt` while a line is typed, which is nothing that has to end."""
    with _ctrl_c(signal.default_int_handler):
        yield


@contextmanager
def _ctrl_c(handler: Any) -> Iterator[None]:
    # Only the main thread may take over signals.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _noting() -> Iterator[_Requests]:
    # Only the main thread may take over signals; elsewhere they stay with the caller.
    if threading.current_thread() is not threading.main_thread():
        yield _Requests("note")
        return
    requests = _watched or _Requests("note")
    answer, requests.answer = requests.answer, "note"
    before = {} if _watched else _listen(requests)
    try:
        yield requests
    finally:
        requests.answer = answer
        for number, handler in before.items():
            # One that C has installed is None here, and cannot be put back.
            if handler is not None:
                signal.signal(number, handler)


def _listen(requests: _Requests) -> dict[signal.Signals, Any]:
    """Have requests answer the signals; the handlers before."""
    return {number: signal.signal(number, requests.receive) for number in answered_signals()}


def answered_signals() -> list[signal.Signals]:
    """The signals that this process answers: all, but for the hang-up that `nohup` has it ignore.

    A shell has the commands that it starts in the background ignore SIGINT, but whoever sends them one means it.
    """
    is_kept = getattr(signal, "SIGHUP", None)
    return [number for number in SIGNALS if number != is_kept or signal.getsignal(number) != signal.SIG_IGN]


def _leave(cause: str) -> NoReturn:
    """End the process at once, with a line."""
    if is_first_process():
        # A progress bar hides the cursor.
        erase = "\r\x1b[K\x1b[?25h" if os.isatty(2) else ""
        with suppress(OSError):
            os.write(2, f"{erase}stopped by {cause}\n".encode())
    os._exit(STOPPED)


def _leave_if_stopped(unraisable: Any) -> None:
    """Leave where an exception cannot be passed on, as in a destructor, so that a request is not lost there."""
    if isinstance(unraisable.exc_value, Stopped) and _watched:
        _leave(_watched.cause)
    sys.__unraisablehook__(unraisable)


def _ignore() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
