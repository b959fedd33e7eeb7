"""An stdout that takes nothing, or not all letters, and errors that nobody foresaw: a line at most."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from command_line import invoke

COMMANDS = [
    [sys.executable, *unbuffered, "-m", "capaft", *arguments]
    for unbuffered in ((), ("-u",))
    for arguments in (("presets", "--json"), ("--help",), ("--version",), ("train", "--print-config"))
]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_reader_that_has_gone_is_no_error(command: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk that is always full")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk_is_one_line(command: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "error: cannot write to stdout: No space left on device\n")


def test_an_output_that_is_not_utf8_is_escaped(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    for arguments in (["--model", "caf\u00e9", "--print-config"], ["--model", "caf\udce9", "--print-config"]):
        command = [sys.executable, "-m", "capaft", "train", *arguments]
        done = subprocess.run(command, capture_output=True, env=environment, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, b"")
        assert b"caf\\" in done.stdout


def test_an_error_that_nobody_foresaw_is_a_line_and_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ZeroDivisionError("a\x1b[2Jb")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("capaft.commands.presets.preset_summaries", fail)
    done = invoke("presets")
    (file,) = tmp_path.iterdir()
    assert (done.code, done.out) == (1, "")
    assert done.err == (
        "error: unexpected ZeroDivisionError: a\\x1b[2Jb; if the files of the model are in order, please report it, "
        f"with {file}\n"
    )
    assert "in fail" in file.read_text()


def test_libraries_that_compute_scores_are_quiet(run: Path, tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text("text,label\nA superb film,good\nA delightful book,good\n")
    done = invoke("eval", run, "--data", tmp_path / "one.csv")
    assert done.code == 0
    assert "warning" not in done.err
