"""A run in several processes on this machine, as a launcher would start it: one command, one line of errors."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType

from capaft.support.console import print_error

# Launchers set this for their processes; where it is set, a launcher has started this one.
_STARTED = "WORLD_SIZE"
# Set for the processes that this module starts: their stdin ends when the launcher does.
_FOLLOWS = "_CAPAFT_FOLLOWS"
_POLL_SECONDS = 0.05
# Time for the other processes to end by themselves: after Ctrl-C they save, after a failure they notice it.
_SAVING_SECONDS = 60.0
_NOTICING_SECONDS = 10.0
_INTERRUPTED = 130
# Signals that are passed on; not every system has all of them.
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def should_launch(processes: int) -> bool:
    """True if this process should start others instead of training itself."""
    return processes > 1 and os.environ.get(_STARTED, "1") == "1" and "LOCAL_RANK" not in os.environ


def follow_launcher() -> None:
    """End this process with the launcher that started it, however that ends; without one, do nothing."""

    def wait() -> None:
        # Not through sys.stdin, whose lock would still be held when the interpreter ends.
        while os.read(0, 4096):
            pass
        os._exit(1)

    if os.environ.pop(_FOLLOWS, None):
        threading.Thread(target=wait, daemon=True).start()


def launch_processes(processes: int, arguments: Sequence[str]) -> int:
    """Run `capaft` with these arguments in several processes, which find one another over the loopback.

    Ctrl-C and requests to end are passed on to all of them, once each. A killed process cannot report itself, so a line
    on stderr does.

    Args:
        processes: their number.
        arguments: the command line, without the program.

    Returns:
        The exit code: 0, or the highest of those that failed by themselves, or 1.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        for process in running:
            process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in _SIGNALS}
    try:
        for rank in range(processes):
            running.append(_start(rank, processes, port, arguments))
        # The first failure ends the wait for all: the others cannot go on without that process.
        while True:
            codes = [process.poll() for process in running]
            if any(codes) or None not in codes:
                break
            time.sleep(_POLL_SECONDS)
        # Reported before the others are stopped, since those that are killed then did not fail.
        killed = {rank: -code for rank, code in enumerate(codes) if code and code < 0}
        for rank, number in killed.items():
            print_error(f"process {rank} was ended by {signal.Signals(number).name}")
        _stop(running, _SAVING_SECONDS if _INTERRUPTED in codes else _NOTICING_SECONDS)
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
        for number, handler in before.items():
            signal.signal(number, handler)
    exit_codes = [process.returncode for process in running]
    return max((code for code in exit_codes if code > 0), default=1 if any(exit_codes) else 0)


def _start(rank: int, processes: int, port: int, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start one of the processes; only the first has stdout, so that results are printed once."""
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // processes))
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), _STARTED: str(processes), _FOLLOWS: "1"}
    ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": threads}
    return subprocess.Popen(
        [sys.executable, "-m", "capaft", *arguments],
        env=os.environ | meeting | ranks,
        stdin=subprocess.PIPE,
        stdout=None if rank == 0 else subprocess.DEVNULL,
        # A group of its own, so that Ctrl-C at a terminal does not reach it a second time.
        process_group=0 if os.name == "posix" else None,
    )


def _stop(running: Sequence[subprocess.Popen[bytes]], seconds: float) -> None:
    """Let the others end by themselves, as they do after Ctrl-C or the same error; then kill them."""
    deadline = time.monotonic() + seconds
    for process in running:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
