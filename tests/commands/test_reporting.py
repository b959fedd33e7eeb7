"""An stdout that takes nothing or not all letters, memory that runs out, errors nobody foresaw: a line at most."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import invoke
from tiny_job import fork, wait

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


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no disk that is always full")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk_is_one_line(command: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "error: cannot write to stdout: No space left on device\n")


OUT_OF_MEMORY = "error: out of memory"


def as_torch_fails(*_: Any, **__: Any) -> None:
    torch.empty(2**50, dtype=torch.uint8)


def as_python_fails(*_: Any, **__: Any) -> None:
    bytearray(2**60)


@pytest.mark.parametrize("fail", [as_torch_fails, as_python_fails])
@pytest.mark.parametrize(
    ("place", "arguments"),
    [
        ("capaft.inference.merging.plan_merge", ["merge", "RUN", "--output", "OUT"]),
        ("capaft.adapter.rank.inspect_ranks", ["inspect-rank", "RUN"]),
        ("transformers.AutoModelForSequenceClassification.from_pretrained", ["eval", "RUN"]),
        ("transformers.AutoTokenizer.from_pretrained", ["eval", "RUN"]),
        ("capaft.adapter.file.save_load.load", ["eval", "RUN"]),
        ("capaft.tasks.text_classification.TextClassification.features", ["eval", "RUN"]),
        (
            "capaft.training.setup.fitted_head.fit_heads",
            ["train", "--no-head-cache", "--data", "DATA", "--output", "OUT"],
        ),
        ("capaft.training.run.attach_plan", ["train", "--data", "DATA", "--output", "OUT"]),
    ],
    ids=lambda value: value.rpartition(".")[2] if isinstance(value, str) else "",
)
def test_exhausted_memory_is_one_line_wherever_it_comes_up(
    place: str, arguments: list[str], fail: Any, run: Path, reviews: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(place, fail)
    places = {"RUN": run, "DATA": reviews, "OUT": tmp_path / "out"}
    done = invoke(*(places.get(argument, argument) for argument in arguments))
    assert (done.code, done.out) == (1, "")
    assert done.err.splitlines()[-1].startswith(OUT_OF_MEMORY)
    assert done.err.count("error") == 1
    assert "Traceback" not in done.err
    assert not (tmp_path / "out" / "results.json").exists()
    assert list(tmp_path.glob("**/*.safetensors")) == []


def test_a_process_without_memory_says_so(run: Path, tmp_path: Path) -> None:
    def work() -> None:
        in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (in_use + 40 * 2**20,) * 2)
        done = invoke("merge", run, "--output", tmp_path / "merged")
        assert (done.code, done.out) == (1, "")
        assert done.err.startswith(OUT_OF_MEMORY)

    assert wait(fork(work)) == 0
    assert list(tmp_path.iterdir()) == []


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
