"""What several test files share: real files, the real embedded model, and one finished run."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

# Set before torch is imported anywhere: two test processes on two cores should not fight over them.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

GOOD = ("superb", "delightful", "moving", "brilliant", "wonderful", "charming", "splendid", "gripping")
BAD = ("dreadful", "boring", "clumsy", "lifeless", "awful", "tedious", "hollow", "painful")
THINGS = ("film", "book", "play", "album")


def write_reviews(path: Path) -> Path:
    """64 sentences with an obvious sentiment, as CSV with the columns `text` and `label`."""
    rows = [
        (f"A {word} {thing}, from beginning to end.", label)
        for thing in THINGS
        for pair in zip(GOOD, BAD, strict=True)
        for word, label in zip(pair, ("good", "bad"), strict=True)
    ]
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text", "label"])
        writer.writerows(rows)
    return path


def invoke(*arguments: Any, environ: dict[str, str] | None = None) -> SimpleNamespace:
    """Run the command line in this process: exit code, stdout, stderr."""
    from capaft.cli import app

    result = CliRunner().invoke(app, [str(each) for each in arguments], env=environ)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return SimpleNamespace(code=result.exit_code, out=result.stdout, err=result.stderr)


QUICK = ("--epochs", "2", "--batch-size", "8", "--k", "32", "--rank", "4", "--max-length", "32", "--no-baseline")


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
