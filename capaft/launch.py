"""Starting a run in several processes on this machine, as a launcher would: one command, one line of errors."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

# What a launcher sets for its processes; where it is there, one has already started this one.
_STARTED = "WORLD_SIZE"
_POLL_SECONDS = 0.05
_GRACE_SECONDS = 30.0


def wanted(processes: int) -> bool:
    """Whether this process is to start others and not to train itself."""
    return processes > 1 and _STARTED not in os.environ


def launch(processes: int, arguments: Sequence[str]) -> int:
    """Run `capaft` with these arguments in so many processes, which find one another over the loopback.

    Args:
        processes: how many.
        arguments: the command line, without the program.

    Returns:
        The exit code: that of the first process to fail, once the others were stopped.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // processes))
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), _STARTED: str(processes)}
    running = []
    for rank in range(processes):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": threads}
        command = [sys.executable, "-m", "capaft", *arguments]
        # stdout is the first one's: results are printed once.
        out = None if rank == 0 else subprocess.DEVNULL
        running.append(subprocess.Popen(command, env=os.environ | common | own, stdout=out))
    # Ctrl-C reaches the processes as well, which save and stop; this one waits for them.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        while True:
            codes = [each.poll() for each in running]
            failed = [code for code in codes if code]
            if failed or all(code == 0 for code in codes):
                break
            time.sleep(_POLL_SECONDS)
        _stop(running)
    finally:
        signal.signal(signal.SIGINT, before)
    return failed[0] if failed and failed[0] > 0 else (1 if failed else 0)


def _stop(running: Sequence[subprocess.Popen[bytes]]) -> None:
    """Let the others end by themselves, as they do after Ctrl-C or the same error; then end them."""
    deadline = time.monotonic() + _GRACE_SECONDS
    for each in running:
        try:
            each.wait(max(0.1, deadline - time.monotonic()) if each.poll() is None else 0)
        except subprocess.TimeoutExpired:
            each.kill()
            each.wait()
