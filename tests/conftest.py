"""Fixtures that several test files share: a real data file and a finished run of the embedded model."""

from __future__ import annotations

import json
import os
import signal
import tempfile
from pathlib import Path
from typing import Any

import pytest
from command_line import QUICK, invoke, write_reviews

# Set before torch is imported anywhere: two test processes on two cores should not fight over them.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
# Under `nohup` SIGHUP is ignored, by the tests' own processes too, which are to answer it.
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
# Files that runs cache for later runs stay within one test process.
_ASSETS = tempfile.TemporaryDirectory()
os.environ["HF_ASSETS_CACHE"] = _ASSETS.name


@pytest.fixture(scope="session")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_reviews(tmp_path_factory.mktemp("data") / "reviews.csv")


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, reviews: Path) -> Path:
    """A finished NOLA run on the reviews; tests must not write into it."""
    output = tmp_path_factory.mktemp("runs") / "nola"
    done = invoke("train", "--data", reviews, "--output", output, "--json", *QUICK, "--baseline")
    assert done.code == 0, done.err
    return output


@pytest.fixture
def results(run: Path) -> dict[str, Any]:
    return json.loads((run / "results.json").read_text())
