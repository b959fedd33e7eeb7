"""The frame of every verb, in real processes: an stdout that takes nothing ends in a line at most."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PRESETS = [sys.executable, "-m", "capaft", "presets"]


def test_a_reader_that_has_gone_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(PRESETS, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk that is always full")
def test_a_full_disk_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(PRESETS, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "error: cannot write to stdout: its disk is full\n")
