"""Messages between processes, tried with real ones."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import invoke
from tiny_job import bert, command, config, fork, together, wait
from transformers import BertForSequenceClassification

from capaft.adapter.file import save_load
from capaft.support.errors import PeerError, TrainingError, UsageError
from capaft.training import loop, run, validation
from capaft.training.parallel.processes import Processes
from capaft.training.trainer import Trainer


def parameters(rank: int) -> list[torch.nn.Parameter]:
    """One with a gradient in each process, one in the first only, one in none."""
    made = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((2, 3), (4,), (1,))]
    made[0].grad = torch.full((2, 3), 1.0 + rank)
    made[1].grad = torch.arange(4.0) if rank == 0 else None
    return made


def test_alone_nothing_is_said() -> None:
    alone = Processes.here(60)
    assert (alone.rank, alone.count, alone.is_first) == (0, 1, True)
    assert alone.totals(1.5, True) == [1.5, 1]
    assert alone.gather(iter("ab")) == ["a", "b"]
    assert alone.from_first("x") == "x"
    tensor = torch.ones(2)
    assert alone.sum_of(tensor) is tensor
    parameters_here = parameters(0)
    alone.add_up(parameters_here)
    assert parameters_here[2].grad is None
    assert alone.bytes_sent == 0


def test_three_processes(tmp_path: Path) -> None:
    def talk(rank: int) -> None:
        processes = Processes.here(60)
        parameters_here = parameters(rank)
        processes.add_up(parameters_here)
        report: dict[str, Any] = {
            "who": (processes.rank, processes.count, processes.is_first),
            "gradients": [p.grad.tolist() for p in parameters_here],  # type: ignore[union-attr]
            "bytes": processes.bytes_sent,
            # More than float32 can tell from its neighbour.
            "totals": processes.totals(2**25 + rank, rank == 1),
            "sum": processes.sum_of(torch.tensor([1.0, rank])).tolist(),
            "items": processes.gather([(rank, "x")] * rank),
            "first": processes.from_first({"path": str(tmp_path)} if rank == 0 else None),
        }
        (tmp_path / f"{rank}.json").write_text(json.dumps(report))

    assert together(3, talk, tmp_path) == [0, 0, 0]
    for rank in range(3):
        report = json.loads((tmp_path / f"{rank}.json").read_text())
        assert report["who"] == [rank, 3, rank == 0]
        assert report["gradients"] == [[[6.0] * 3] * 2, [0.0, 1.0, 2.0, 3.0], [0.0]]
        assert report["bytes"] == 4 * (6 + 4 + 1)
        assert report["totals"] == [3 * 2**25 + 3, 1.0]
        assert report["sum"] == [3.0, 3.0]
        assert report["items"] == [[1, "x"], [2, "x"], [2, "x"]]
        assert report["first"] == {"path": str(tmp_path)}


@pytest.mark.parametrize("call", ["totals", "gather", "from_first", "sum_of"])
def test_one_that_has_ended_is_noticed_at_once(call: str, tmp_path: Path) -> None:
    def talk(rank: int) -> None:
        processes = Processes.here(60)
        processes.totals(0)
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        with pytest.raises(PeerError, match="another process"):
            getattr(processes, call)({"totals": 1.0, "sum_of": torch.ones(1)}.get(call, []))

    started = time.monotonic()
    assert together(2, talk, tmp_path) == [0, -signal.SIGKILL]
    assert time.monotonic() - started < 30


def test_one_that_hangs_is_given_up_and_named(tmp_path: Path) -> None:
    def talk(rank: int) -> None:
        processes = Processes.here(1)
        processes.totals(0)
        if rank == 1:
            time.sleep(3)
            return
        with pytest.raises(TrainingError) as error:
            processes.totals(0)
        (tmp_path / f"{rank}.txt").write_text(str(error.value))

    assert together(3, talk, tmp_path) == [0, 0, 0]
    # One of the two that waited reports it.
    line = "process 1 did not answer for 1 s (--timeout); --resume goes on from the checkpoint"
    assert sorted((tmp_path / f"{rank}.txt").read_text() for rank in (0, 2)) == ["", line]


@pytest.mark.slow
def test_the_first_is_given_up_too_although_it_keeps_what_the_others_know(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        meeting = f"tcp://127.0.0.1:{probe.getsockname()[1]}"

    def talk(rank: int) -> None:
        torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
        processes = Processes.here(1)
        processes.totals(0)
        if rank == 0:
            os.kill(os.getpid(), signal.SIGSTOP)
        with pytest.raises(TrainingError, match=r"^process 0 did not answer for 1 s"):
            processes.totals(0)
        os._exit(0)

    first, second = (fork(lambda rank=rank: talk(rank)) for rank in range(2))  # type: ignore[misc]
    assert wait(second) == 0
    os.kill(first, signal.SIGKILL)
    assert wait(first) == -signal.SIGKILL


def test_ctrl_c_that_reaches_one_stops_all_at_the_same_step(
    reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = bert(tmp_path / "bert", BertForSequenceClassification)
    arguments = command(config(model, reviews, head_init="seeded"), tmp_path / "run")
    real = loop.collate_share

    def collated(run: Trainer, indices: Any, step: int) -> Any:
        if step == 4 and run.processes.rank == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return real(run, indices, step)

    def work(rank: int) -> None:
        monkeypatch.setattr(loop, "collate_share", collated)
        monkeypatch.setattr(validation, "draw_losses", lambda *_: b"")
        done = invoke(*arguments)
        (tmp_path / f"{rank}.err").write_text(done.err)
        os._exit(done.code)

    assert together(2, work, tmp_path) == [130, 130]
    errors = [(tmp_path / f"{rank}.err").read_text() for rank in range(2)]
    assert "stopped at step 5 of 16; resume with capaft train --resume" in errors[0]
    assert "stopped" not in errors[1]
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000000005"]


# Lines for people


def _killed(rank: int, patch: pytest.MonkeyPatch) -> None:
    def die(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if rank == 1:
        patch.setattr(loop, "collate_share", die)


def _loss_is_nan(rank: int, patch: pytest.MonkeyPatch) -> None:
    real = loop.backward
    patch.setattr(loop, "backward", lambda *arguments: real(*arguments) * float("nan"))


def _full_disk(rank: int, patch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise TrainingError("cannot write: No space left on device")

    patch.setattr(save_load, "save", full)


def _output_is_taken(rank: int, patch: pytest.MonkeyPatch) -> None:
    def taken(*_: Any) -> None:
        raise UsageError("--output holds something else")

    patch.setattr(run, "_choose", taken)


def _bad_data(rank: int, patch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any) -> None:
        raise UsageError("row 3 has no label")

    patch.setattr(run, "prepare_job", missing)


@pytest.mark.parametrize(
    ("fault", "codes", "says"),
    [
        (_killed, [1, -signal.SIGKILL], "another process of this run"),
        (_loss_is_nan, [1, 1], "the loss is nan at step 1 "),
        (_full_disk, [1, 1], "cannot write: No space left on device"),
        (_output_is_taken, [2, 1], "--output holds something else"),
        (_bad_data, [2, 2], "row 3 has no label"),
    ],
)
def test_one_line_of_all_of_them(
    fault: Any, codes: list[int], says: str, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = bert(tmp_path / "bert", BertForSequenceClassification)
    arguments = command(config(model, reviews, head_init="seeded"), tmp_path / "run")

    def work(rank: int) -> None:
        fault(rank, monkeypatch)
        monkeypatch.setattr(validation, "draw_losses", lambda *_: b"")
        done = invoke(*arguments)
        assert done.out == ""
        (tmp_path / f"{rank}.err").write_text(done.err)
        os._exit(done.code)

    started = time.monotonic()
    assert together(2, work, tmp_path) == codes
    assert time.monotonic() - started < 60
    errors = [
        line
        for file in tmp_path.glob("*.err")
        for line in file.read_text().splitlines()
        if line.startswith("error: ") or "Traceback" in line
    ]
    assert len(errors) == 1, errors
    assert errors[0].startswith(f"error: {says}")


def test_of_what_all_processes_know_the_first_tells() -> None:
    first, second = (Processes(rank, 2).failure("no more memory") for rank in range(2))
    assert type(first) is TrainingError
    assert type(second) is PeerError
    assert str(first) == "no more memory"
