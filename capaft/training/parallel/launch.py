"""A run in several processes on this machine, as a launcher would start it: one command, one line of errors."""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import capaft
from capaft.support.console import print_error, print_note
from capaft.support.errors import UsageError
from capaft.support.signals import SAME_REQUEST_SECONDS, SIGNALS, STOPPED, answered_signals

# Launchers set this for their processes; where it is set, a launcher has started this one.
_STARTED = "WORLD_SIZE"
# Set for the processes that this module starts: their stdin ends when the launcher does.
_FOLLOWS = "_CAPAFT_FOLLOWS"
_POLL_SECONDS = 0.05
# Time for the other processes to end by themselves: after a request to stop they save, after a failure they notice it;
# after one that was killed they only wait for it, and after a second request they should have ended already.
_SAVING_SECONDS = 60.0
_NOTICING_SECONDS = 10.0
_KILLED_SECONDS = 2.0
_INSISTING_SECONDS = 3.0
# More processes than this for each core run out of memory rather than share it.
_PROCESSES_PER_CORE = 4
# Runs the launcher's own capaft, and nothing that the working directory holds.
_PACKAGE = Path(capaft.__file__)
_PROGRAM = """
import runpy, sys
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location("capaft", sys.argv.pop(1))
sys.modules["capaft"] = module_from_spec(spec)
spec.loader.exec_module(sys.modules["capaft"])
runpy.run_module("capaft", run_name="__main__", alter_sys=True)
"""

_is_launched = False


def should_launch(processes: int) -> bool:
    """True if this process should start others instead of training itself."""
    return processes > 1 and os.environ.get(_STARTED, "1") == "1" and "LOCAL_RANK" not in os.environ


def is_launched() -> bool:
    """True if this module has started this process, and reports a process that was killed."""
    return _is_launched


def follow_launcher() -> None:
    """End this process with the launcher that started it, however that ends; without one, do nothing."""
    global _is_launched

    def wait() -> None:
        # Not through sys.stdin, whose lock would still be held when the interpreter ends.
        while os.read(0, 4096):
            pass
        os._exit(1)

    if os.environ.pop(_FOLLOWS, None):
        _is_launched = True
        threading.Thread(target=wait, daemon=True).start()


def launch_processes(processes: int, arguments: Sequence[str]) -> int:
    """Run `capaft` with these arguments in several processes, which find one another over the loopback.

    A request to stop is passed on to all of them, once; a second one ends them. A killed process cannot report itself,
    so a line on stderr does.

    Args:
        processes: their number.
        arguments: the command line, without the program.

    Returns:
        The exit code: 0, or the highest of those that failed by themselves, or 1.

    Raises:
        UsageError: this machine has too few cores for them.
    """
    _check_cores(processes)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running: list[subprocess.Popen[bytes]] = []
    received: list[int] = []
    before = {number: signal.signal(number, lambda number, _: received.append(number)) for number in answered_signals()}
    try:
        # They inherit the block, until they can answer.
        with _blocked_signals():
            for rank in range(processes):
                running.append(_start(rank, processes, port, arguments))
        return _exit_code(running, was_stopped=_wait(running, received))
    finally:
        for process in running:
            _kill(process)
        for number, handler in before.items():
            signal.signal(number, handler)


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_cores(processes: int) -> None:
    """Warn if processes have to share cores.

    Raises:
        UsageError: there are far too few.
    """
    cores = _cores()
    if processes > max(cores * _PROCESSES_PER_CORE, 2):
        raise UsageError(f"--processes {processes} is too many for the {cores} cores here; choose {cores} or fewer")
    if processes > cores:
        print_note(f"warning: {processes} processes share {cores} cores; --processes {cores} would be faster")


def _start(rank: int, processes: int, port: int, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start one of the processes; only the first has stdout, so that results are printed once."""
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, _cores() // processes))
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), _STARTED: str(processes), _FOLLOWS: "1"}
    ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": threads}
    return subprocess.Popen(
        [sys.executable, "-P", "-c", _PROGRAM, str(_PACKAGE), *arguments],
        env=os.environ | meeting | ranks,
        stdin=subprocess.PIPE,
        stdout=None if rank == 0 else subprocess.DEVNULL,
        # A group of its own, so that Ctrl-C at a terminal does not reach it a second time.
        process_group=0 if os.name == "posix" else None,
    )


def _wait(running: Sequence[subprocess.Popen[bytes]], received: list[int]) -> bool:
    """Wait until all have ended, by themselves or, some time after the first that failed, by force.

    Args:
        running: the processes.
        received: the signals that have arrived; taken from there.

    Returns:
        True if they were asked to stop.
    """
    asked_at, deadline, has_failed = math.inf, math.inf, False
    while None in (codes := [process.poll() for process in running]):
        now = time.monotonic()
        if any(codes) and not has_failed:
            # The others cannot go on without a process that failed.
            has_failed, killed = True, _report_killed(codes)
            if STOPPED in codes and asked_at == math.inf:
                received.append(signal.SIGTERM)
            deadline = now + (_SAVING_SECONDS if STOPPED in codes else _KILLED_SECONDS if killed else _NOTICING_SECONDS)
        while received:
            number = received.pop(0)
            if asked_at < math.inf and now - asked_at < SAME_REQUEST_SECONDS:
                continue
            if asked_at < math.inf:
                deadline = min(deadline, now + _INSISTING_SECONDS)
            asked_at = min(asked_at, now)
            for process in running:
                process.send_signal(number)
        if now >= deadline:
            has_failed = True
            for process in running:
                _kill(process)
        time.sleep(_POLL_SECONDS)
    if not has_failed:
        _report_killed(codes)
    return asked_at < math.inf


def _report_killed(codes: Sequence[int | None]) -> bool:
    """Print a line for each process that a signal has ended; True if there is one."""
    killed = {rank: -code for rank, code in enumerate(codes) if code and code < 0}
    for rank, number in killed.items():
        ended_by = signal.Signals(number).name
        print_error(f"process {rank} was ended by {ended_by}; --resume goes on from the checkpoint")
    return bool(killed)


def _exit_code(ended: Sequence[subprocess.Popen[bytes]], *, was_stopped: bool) -> int:
    """The highest code of those that ended by themselves, or else 1 if any was killed."""
    codes = [process.returncode for process in ended]
    if was_stopped and STOPPED not in codes and min(codes) < 0:
        print_note("stopped at once")
        return STOPPED
    return max((code for code in codes if code > 0), default=1 if any(codes) else 0)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process and those that it has started."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL) if os.name == "posix" else process.kill()
        process.wait()


@contextmanager
def _blocked_signals() -> Iterator[None]:
    """Keeps requests to stop waiting for as long as the context lasts."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
