"""The command line as a whole: its help, its mistakes, and every method through all verbs on a tiny model."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command_line import QUICK, invoke
from tiny_job import bert
from transformers import BertForSequenceClassification

from capaft.methods.registry import HOSTS


def test_help_is_fast_and_imports_no_torch() -> None:
    code = (
        "import sys; from capaft.commands.app import app\ntry: app(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy', 'accelerate'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)

    # As for users, compiled modules are kept from one start to the next.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}

    def processor_seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "capaft", "--help"], check=True, capture_output=True, env=environment)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

    # Processor time, and the best of ten, since other work may share the cores while tests run.
    assert min(processor_seconds() for _ in range(10)) < 0.3


@pytest.mark.parametrize(("command", "option"), [("eval", "--predictions"), ("inspect-rank", "--plot")])
def test_a_file_that_cannot_be_written_is_told_before_the_work(
    command: str, option: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("capaft.training.record.saved_run.open_run", None)
    (tmp_path / "file").touch()
    for path, message in (
        (tmp_path, f"{tmp_path} is a directory; name a file"),
        (tmp_path / "file" / "a" / "b", f"{tmp_path}/file/a/b: {tmp_path}/file is not a writable directory"),
    ):
        done = invoke(command, run, option, path)
        assert (done.code, done.out, done.err) == (2, "", f"error: {option} {message}\n")
    monkeypatch.setattr(os, "access", lambda *_: False)
    done = invoke(command, run, option, tmp_path / "new" / "file")
    assert (done.code, done.err) == (
        2,
        f"error: {option} {tmp_path}/new/file: {tmp_path} is not a writable directory\n",
    )


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bert(tmp_path_factory.mktemp("model"), BertForSequenceClassification)


@pytest.mark.parametrize("method", ["head", "full", "lora", "capaboost", "lora+nola+capaboost"])
def test_every_method_goes_the_whole_way(method: str, small: Path, reviews: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    flags = ("--data", reviews, "--model", small, "--method", method, "--output", output, "--json", *QUICK)
    done = invoke("train", *flags)
    assert done.code == 0, done.err
    trained = json.loads(done.out)
    assert json.loads(invoke("eval", output, "--json").out)["value"] == trained["value"]
    assert invoke("merge", output, "--output", tmp_path / "merged").code == 0
    inspected = invoke("inspect-rank", output, "--json")
    if method in ("head", "full"):
        assert inspected.code == 2
    else:
        width = 8 if "capaboost" in method else 4
        assert {site["hidden_width"] for site in json.loads(inspected.out)["sites"]} == {width}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("eval", "run", "--no-such-option", "0"), "No such option: --no-such-option"),
        (("train", "--modle", "x"), "No such option: --modle"),
        (("trian",), "No such command 'trian'"),
        (("merge", "run"), "Missing option '--output'"),
    ],
)
def test_what_is_wrong_with_a_command_line_is_told_in_one_line(arguments: tuple[str, ...], message: str) -> None:
    done = invoke(*arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error: {message}")
    assert re.search(r"; see \S.* --help\n$", done.err)
    assert done.err.count("\n") == 1


def test_info_methods_env_and_print_config(run: Path) -> None:
    header = json.loads(invoke("info", run, "--json").out)["header"]
    assert header["method"]["method"] == "lora+nola"
    assert "intact" in invoke("info", run).out
    assert {row["name"] for row in json.loads(invoke("methods", "--json").out)} >= {"lora", "nola", "capaboost"}
    assert json.loads(invoke("env", "--json").out)["torch"] == torch.__version__
    assert "k:" in invoke("train", "--print-config").out


def test_results_go_to_stdout_and_the_rest_to_stderr(run: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "capaft", "eval", str(run), "--json"], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["metric"] == "accuracy"


EVERY = {
    "lora": (
        "lora+nola+capaboost",
        "--rslora",
        "--rank-pattern",
        "value=2",
        "--dropout",
        "0.1",
        "--lora-plus-ratio",
        "4",
    ),
    "dora": ("dora+capaboost", "--layers", "1", "--masks", "partition", "--mask-rescale", "variance"),
    "vera": ("vera+nola", "--exclude-modules", "value", "--scope", "model"),
    "houlsby": ("houlsby+nola+capaboost", "--bottleneck", "4", "--activation", "gelu", "--modules-to-save", "pooler"),
    "pfeiffer": ("pfeiffer+capaboost", "--bottleneck", "4", "--no-bias", "--copies", "3"),
    "parallel": ("parallel+nola", "--bottleneck", "4", "--scaling", "2"),
    "prefix": ("prefix+nola+capaboost", "--prefix-length", "3"),
    "ia3": ("ia3",),
    "bitfit": ("bitfit+nola", "--basis", "uniform"),
}


def test_every_host_is_run_below() -> None:
    assert set(EVERY) == set(HOSTS)


@pytest.mark.parametrize("host", EVERY)
def test_every_host_trains_repeats_scores_and_merges_or_says_why_not(
    host: str, small: Path, reviews: Path, tmp_path: Path
) -> None:
    method, *options = EVERY[host]
    quick = ("--epochs", "1", "--batch-size", "8", "--k", "16", "--max-train-examples", "24", "--max-length", "24")
    flags = ("--data", reviews, "--model", small, "--output", tmp_path / "a", "--json", "--method", method)
    done = invoke("train", *flags, *quick, *options)
    assert done.code == 0, done.err
    results = json.loads(done.out)
    repeated = invoke("train", "--config", tmp_path / "a" / "run.yaml", "--output", tmp_path / "b", "--json")
    assert repeated.code == 0, repeated.err
    assert (tmp_path / "a" / "adapter.safetensors").read_bytes() == (
        tmp_path / "b" / "adapter.safetensors"
    ).read_bytes()
    scored = json.loads(invoke("eval", tmp_path / "a", "--json").out)
    assert scored["value"] == results["value"]
    merged = invoke("merge", tmp_path / "a", "--output", tmp_path / "merged", "--json")
    if reason := HOSTS[host].unmergeable:
        assert merged.code == 2
        assert f"{host} cannot be merged: {reason}" in " ".join(merged.err.split())
        assert not (tmp_path / "merged").exists()
    else:
        assert json.loads(merged.out)["sites"] > 0, merged.err
    inspected = invoke("inspect-rank", tmp_path / "a", "--json")
    assert inspected.code == (2 if host in ("prefix", "ia3", "bitfit") else 0), inspected.err


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed_are_in_nobodys_way(closed: str) -> None:
    command = f"exec '{sys.executable}' -m capaft --version {closed}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_no_file_gets_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    """Whatever is printed would go into it."""
    code = (
        "import os; from capaft.support.console import hold_standard_streams as hold; hold(); "
        "print('lost', flush=True); raise SystemExit(os.open('file', os.O_CREAT | os.O_WRONLY))"
    )
    command = f"exec '{sys.executable}' -c \"{code}\" <&- >&- 2>&-"
    assert subprocess.run(["sh", "-c", command], cwd=tmp_path).returncode > 2
    assert (tmp_path / "file").read_bytes() == b""
