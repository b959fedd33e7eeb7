"""Run commands, in this process or in a fresh one, and write the reviews that most of them read."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from typer.testing import CliRunner

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
    from capaft.commands.app import app

    result = CliRunner().invoke(app, list(map(str, arguments)), env=environ)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return SimpleNamespace(code=result.exit_code, out=result.stdout, err=result.stderr)


_INVOKE = """
import json, os, sys, tempfile

from command_line import invoke

os.environ["HF_HUB_OFFLINE"] = sys.argv[2]
with tempfile.TemporaryDirectory() as assets:
    os.environ["HF_ASSETS_CACHE"] = assets
    print(json.dumps([vars(invoke(*arguments)) for arguments in json.loads(sys.argv[1])]))
"""


def invoke_apart(
    commands: Iterable[Sequence[Any]], cwd: Path, environ: dict[str, str] | None = None, *, offline: bool = True
) -> list[SimpleNamespace]:
    """Run commands one after the other in one fresh process: exit code, stdout, stderr of each.

    Args:
        commands: the arguments of each command.
        cwd: the working directory.
        environ: changes to the environment; entries of its `PYTHONPATH` go before capaft and this folder.
        offline: run without access to the hub.
    """
    environ = dict(environ or {})
    support = Path(__file__).parent
    path = os.pathsep.join([*filter(None, [environ.pop("PYTHONPATH", "")]), str(support.parents[1]), str(support)])
    encoded = json.dumps([list(map(str, arguments)) for arguments in commands])
    command = [sys.executable, "-c", _INVOKE, encoded, str(int(offline))]
    changed = os.environ | environ | {"PYTHONPATH": path}
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=changed)
    assert (done.returncode, done.stderr) == (0, "")
    return [SimpleNamespace(**result) for result in json.loads(done.stdout)]


QUICK = ("--epochs", "2", "--batch-size", "8", "--k", "32", "--rank", "4", "--max-length", "32", "--no-baseline")
