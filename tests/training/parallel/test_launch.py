"""Starting processes: the environment of each, and the end of the others when one fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tiny_job import bert, command, config, execute, fork, losses, wait
from transformers import BertForSequenceClassification

import capaft
from capaft.support.errors import UsageError
from capaft.training import validation
from capaft.training.parallel import launch
from capaft.training.parallel.launch import launch_processes, should_launch


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that the processes run in this test, in place of capaft."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, "_PACKAGE", tmp_path / "capaft" / "__init__.py")
    monkeypatch.setattr(launch, "_cores", lambda: 7)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    (tmp_path / "capaft").mkdir()
    (tmp_path / "capaft" / "__init__.py").touch()
    return tmp_path / "capaft" / "__main__.py"


RANK = "import os, sys, time, signal; rank = int(os.environ['RANK'])\n"
# As capaft does once it can answer.
RANK += "answer = lambda: signal.pthread_sigmask(signal.SIG_SETMASK, [])\n"


def test_a_process_that_was_started_starts_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert should_launch(2)
    assert not should_launch(1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not should_launch(2)


def test_what_each_is_told(program: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    names = "'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'OMP_NUM_THREADS', 'MASTER_PORT'"
    tell = f"open(f'{{rank}}.txt', 'w').write(repr([sys.argv[1:]] + [os.environ[name] for name in ({names})]))\n"
    program.write_text(RANK + tell + "print('result', rank)")
    assert launch_processes(3, ["train", "--lr", "1e-3"]) == 0
    received = [eval((program.parent.parent / f"{rank}.txt").read_text()) for rank in range(3)]
    ports = {values.pop() for values in received}
    assert received == [[["train", "--lr", "1e-3"], str(rank), "3", "127.0.0.1", "2"] for rank in range(3)]
    assert len(ports) == 1
    # Results are printed once.
    assert capfd.readouterr().out == "result 0\n"


def test_they_end_with_the_launcher_however_it_ends() -> None:
    code = "import time; from capaft.training.parallel.launch import follow_launcher; "
    code += "follow_launcher(); print('on', flush=True); time.sleep(60)"
    command, follows = [sys.executable, "-c", code], {"_CAPAFT_FOLLOWS": "1"}
    pipe = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with (
        subprocess.Popen(command, env=os.environ | follows, **pipe) as one,
        subprocess.Popen(command, env=os.environ | follows, **pipe) as other,
        subprocess.Popen(command, **pipe) as alone,
    ):
        for process in (one, other, alone):
            assert process.stdout.readline() == b"on\n"
            # A launcher that was killed has closed all its pipes.
            if process is not other:
                process.stdin.close()
        assert one.wait(10) == 1
        assert (other.poll(), alone.poll()) == (None, None)
        other.kill()
        alone.kill()


def test_threads_that_were_asked_for_are_kept(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    program.write_text(RANK + "sys.exit(os.environ['OMP_NUM_THREADS'] != '3')")
    assert launch_processes(2, []) == 0


KILLED = "error: process 1 was ended by SIGKILL; --resume goes on from the checkpoint\n"


@pytest.mark.parametrize(
    ("ends", "code", "says"),
    [
        ("sys.exit(2)", 2, ""),
        ("sys.exit(2 if rank == 1 else 1)", 2, ""),
        ("sys.exit(5) if rank == 1 else time.sleep(60)", 5, ""),
        ("sys.exit(5) if rank == 0 else time.sleep(60)", 5, ""),
        ("os.kill(os.getpid(), 9) if rank == 1 else time.sleep(60)", 1, KILLED),
    ],
)
def test_one_that_fails_ends_all(
    ends: str, code: int, says: str, program: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launch, "_NOTICING_SECONDS", 0.3)
    program.write_text(RANK + ends)
    started = time.monotonic()
    assert launch_processes(2, []) == code
    assert time.monotonic() - started < 30
    assert capfd.readouterr().err == says


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 4)])
def test_signals_are_passed_on_once_each(number: signal.Signals, code: int, program: Path) -> None:
    place = program.parent.parent
    heard = f"signal.signal({int(number)}, lambda *_: open(f'{{rank}}.heard', 'a').write('x')); answer()\n"
    ready = "open(f'{rank}.ready', 'w').close()\n"
    # Both go on for a while after the first signal, as a run does that saves.
    ends = f"\nwhile not os.path.exists(f'{{rank}}.heard'): time.sleep(0.01)\ntime.sleep(0.3)\nsys.exit({code})"
    program.write_text(RANK + heard + ready + ends)
    child = fork(lambda: os._exit(launch_processes(2, [])))
    deadline = time.monotonic() + 60
    while len(list(place.glob("*.ready"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(child, number)
    assert wait(child) == code
    assert [(place / f"{rank}.heard").read_text() for rank in range(2)] == ["x", "x"]


def test_ctrl_c_at_a_terminal_reaches_each_once(program: Path) -> None:
    place = program.parent.parent
    heard = "signal.signal(2, lambda *_: open(f'{rank}.heard', 'a').write('x')); answer()\n"
    heard += "open(f'{rank}.ready', 'w').close()\n"
    ends = "\nwhile not os.path.exists(f'{rank}.heard'): time.sleep(0.01)\ntime.sleep(0.3)\nsys.exit(130)"
    program.write_text(RANK + heard + ends)
    starter = "import sys; sys.path.insert(0, sys.argv[1]); from capaft.training.parallel import launch; "
    starter += "launch._PACKAGE = sys.argv[2]; sys.exit(launch.launch_processes(2, []))"
    source = str(Path(capaft.__file__).parent.parent)
    # A terminal sends the signal to the whole group of the command it runs.
    command = [sys.executable, "-P", "-c", starter, source, str(place / "capaft" / "__init__.py")]
    process = subprocess.Popen(command, process_group=0)
    deadline = time.monotonic() + 60
    while len(list(place.glob("*.ready"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == 130
    assert [(place / f"{rank}.heard").read_text() for rank in range(2)] == ["x", "x"]


def test_one_that_is_interrupted_stops_the_others(program: Path) -> None:
    stop = "signal.signal(15, lambda *_: sys.exit(130)); answer()\n"
    program.write_text(RANK + stop + "os.kill(os.getpid(), 15) if rank == 1 else time.sleep(60)")
    assert launch_processes(2, []) == 130


def test_a_later_request_ends_what_does_not_answer(
    program: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launch, "_INSISTING_SECONDS", 0.1)
    monkeypatch.setattr(launch, "SAME_REQUEST_SECONDS", 0.5)
    place = program.parent.parent
    # Its signals stay blocked, and it has started a process of its own.
    starts = "import subprocess; other = subprocess.Popen(['sleep', '60'])\n"
    program.write_text(RANK + starts + "open(f'{rank}.ready', 'w').write(str(other.pid)); time.sleep(60)")
    launcher = fork(lambda: os._exit(launch_processes(2, [])))
    while len(pids := [file.read_text() for file in place.glob("*.ready")]) < 2 or "" in pids:
        time.sleep(0.02)
    os.kill(launcher, signal.SIGTERM)
    os.kill(launcher, signal.SIGTERM)
    time.sleep(0.7)
    assert os.waitpid(launcher, os.WNOHANG) == (0, 0)
    os.kill(launcher, signal.SIGTERM)
    assert wait(launcher) == 130
    assert capfd.readouterr().err == "stopped at once\n"
    states = [Path(f"/proc/{pid}/stat") for pid in pids]
    assert all(not state.exists() or state.read_text().split()[2] == "Z" for state in states)


def test_nothing_is_imported_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(launch, "_cores", lambda: 2)
    poison = "open('executed', 'a').write(__name__ + '\\n')\n"
    for name in ("json", "yaml", "torch", "rich", "typer", "signal"):
        (tmp_path / f"{name}.py").write_text(poison)
    monkeypatch.setenv("PYTHONPATH", str(Path(capaft.__file__).parent.parent))
    done = subprocess.run([sys.executable, "-m", "capaft", "train", "--print-config"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    # The processes of a run are not even fooled by the package's name.
    (tmp_path / "capaft").mkdir()
    (tmp_path / "capaft" / "__init__.py").write_text(poison)
    (tmp_path / "capaft" / "__main__.py").write_text(poison)
    assert launch_processes(2, ["train", "--print-config"]) == 0
    assert not (tmp_path / "executed").exists()


def test_too_many_for_the_cores(
    program: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launch, "_cores", lambda: 2)
    program.write_text("")
    with pytest.raises(UsageError, match="--processes 65 is too many for the 2 cores here; choose 2 or fewer"):
        launch_processes(65, [])
    assert launch_processes(3, []) == 0
    assert capfd.readouterr().err == "warning: 3 processes share 2 cores; --processes 2 would be faster\n"


# The real command


OTHERS = {
    "accelerate": ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "-m"],
    "torchrun": ["torch.distributed.run", "--nproc_per_node", "2", "-m"],
}


# Three processes that import everything; tests/training/test_loop.py has the loop in two of them.
@pytest.mark.slow
@pytest.mark.parametrize("launcher", [None, "accelerate", "torchrun"])
def test_two_processes_train_as_one_does(
    launcher: str | None, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = bert(tmp_path / "bert", BertForSequenceClassification)
    # The last batch of an epoch has one example for two processes.
    settings = config(model, reviews, batch_size=19, method="lora", label_smoothing=0.1)
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    environment["PYTHONPATH"] = str(Path(capaft.__file__).parent.parent)
    started: list[Any] = [sys.executable, "-m", *OTHERS.get(launcher or "", []), "capaft"]
    changes = {} if launcher else {"processes": 2}
    done = subprocess.run(
        [*started, *command(settings, tmp_path / "two", **changes), "--json"],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    # Only the first process prints.
    results = json.loads(done.stdout)
    assert done.stderr.count("epoch 1  accuracy") == 1
    monkeypatch.setattr(validation, "draw_losses", lambda *_: b"")
    alone = execute(settings, tmp_path / "one")
    expected = losses(tmp_path / "one")
    assert len(expected) == 8
    assert losses(tmp_path / "two") == [(step, pytest.approx(loss, abs=1e-5)) for step, loss in expected]
    assert results["scores"] == {name: pytest.approx(score, abs=1e-5) for name, score in alone["scores"].items()}
    assert (results["processes"], results["steps"]) == (2, alone["steps"])
    assert results["bytes_per_step"] == 4 * results["trainable_parameters"]
    one, two = (load_file(tmp_path / name / "adapter.safetensors") for name in ("one", "two"))
    assert all(two[name].allclose(number, atol=1e-4) for name, number in one.items())
