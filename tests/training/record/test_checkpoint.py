"""Checkpoints are whole or not there, and going on from one is going on as if nothing had happened."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_job import fork, killing_at, wait
from torch import nn

from capaft.support import files
from capaft.support.errors import TrainingError, UsageError
from capaft.training.early_stopping import Best
from capaft.training.optimizer import build_optimizer
from capaft.training.record.checkpoint import Checkpoint, Progress, newest_checkpoint, write_checkpoint

EIGHT_BIT = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
OPTIMIZERS = ("adamw", "adafactor", "sgd", pytest.param("adamw-8bit", marks=EIGHT_BIT))
MADE_WITH = {"torch": "2", "threads": "1"}
MADE_FROM = {"training data": "1f", "base model": "2e"}


class Run:
    """Two parameters, one a matrix, that follow a pull of their own at every step."""

    def __init__(self, name: str = "adamw") -> None:
        generator = torch.Generator().manual_seed(0)
        self.trained = {
            "down": nn.Parameter(torch.randn(80, 60, generator=generator)),
            "head:bias": nn.Parameter(torch.randn(4, generator=generator)),
        }
        groups = [
            {"params": [self.trained["down"]], "lr": 1e-2, "weight_decay": 0.1},
            {"params": [self.trained["head:bias"]], "lr": 1e-3, "weight_decay": 0.0},
        ]
        self.optimizer = build_optimizer(name, groups)

    def go(self, first: int, last: int) -> Run:
        for step in range(first, last):
            for parameter in self.trained.values():
                parameter.grad = (parameter * (step + 1)).sin().detach() * 10
            self.optimizer.step()
        return self

    def write(self, directory: Path, step: int, scaler: Any = None) -> Path:
        progress = Progress(step, Best(2, 0.1 + 0.2, {"accuracy": 0.1 + 0.2, "loss": 1 / 3}, 1), 12.5, 0.25)
        write_checkpoint(
            directory, Checkpoint.capture(progress, self.trained, self.optimizer, scaler, MADE_WITH, MADE_FROM)
        )
        return directory / f"step-{step:09d}"

    def same(self, other: Run) -> bool:
        return all(torch.equal(p, q) for p, q in zip(self.trained.values(), other.trained.values(), strict=True))


def newest(directory: Path) -> Checkpoint:
    checkpoint = newest_checkpoint(directory)
    assert checkpoint is not None
    return checkpoint


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("middle", [0, 1, 4])
def test_a_run_goes_on_bit_for_bit(name: str, middle: int, tmp_path: Path) -> None:
    undisturbed = Run(name).go(0, 9)
    Run(name).go(0, middle).write(tmp_path, middle)
    resumed = Run(name)
    newest(tmp_path).restore(resumed.trained, resumed.optimizer, None)
    assert resumed.go(middle, 9).same(undisturbed)
    assert not Run(name).same(undisturbed)


def test_what_is_no_tensor_comes_back_as_it_was(tmp_path: Path) -> None:
    Run().go(0, 3).write(tmp_path, 3)
    checkpoint = newest(tmp_path)
    assert checkpoint.progress == Progress(3, Best(2, 0.1 + 0.2, {"accuracy": 0.1 + 0.2, "loss": 1 / 3}, 1), 12.5, 0.25)
    assert checkpoint.made_with == MADE_WITH
    assert checkpoint.made_from == MADE_FROM


def test_state_of_an_optimizer_that_is_no_tensor(tmp_path: Path) -> None:
    before = Run().go(0, 2)
    state = before.optimizer.state[before.trained["down"]]
    state["count"] = 7
    before.write(tmp_path, 2)
    after = Run()
    newest(tmp_path).restore(after.trained, after.optimizer, None)
    assert after.optimizer.state[after.trained["down"]]["count"] == 7
    assert after.optimizer.state[after.trained["down"]].keys() == state.keys()


def test_state_within_state(tmp_path: Path) -> None:
    """Nested as in bitsandbytes: a mapping of tensors and numbers under one key."""
    inner = {"state1": torch.arange(15, dtype=torch.uint8), "quant": {"absmax": torch.tensor([0.5]), "bits": 8}}

    class Nested(torch.optim.SGD):
        def state_dict(self) -> dict[str, Any]:
            return super().state_dict() | {"state": {0: {"step": 3, "__own__": inner}}}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            self.loaded = state_dict["state"]

    run = Run()
    run.optimizer = Nested(run.trained.values(), lr=0.1)
    run.write(tmp_path, 3)
    newest(tmp_path).restore(run.trained, run.optimizer, None)
    nested = run.optimizer.loaded[0]["__own__"]
    assert run.optimizer.loaded[0]["step"] == 3
    assert torch.equal(nested["state1"], inner["state1"])
    assert nested["quant"]["absmax"].tolist() == [0.5]
    assert nested["quant"]["bits"] == 8


def test_the_loss_scaler_of_fp16(tmp_path: Path) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)
    scaler.scale(torch.ones(1))
    scaler.update(512.0)
    Run().write(tmp_path, 1, scaler)
    other = torch.amp.GradScaler("cpu")
    run = Run()
    newest(tmp_path).restore(run.trained, run.optimizer, other)
    assert other.state_dict() == scaler.state_dict()


def test_the_two_newest_stay(tmp_path: Path) -> None:
    run = Run()
    for step in (2, 10, 9999, 12345):
        run.write(tmp_path, step)
    assert names(tmp_path) == ["step-000009999", "step-000012345"]
    assert newest(tmp_path).progress.step == 12345


def test_writing_one_again_replaces_it(tmp_path: Path) -> None:
    Run().write(tmp_path, 5)
    moved = Run().go(0, 5)
    moved.write(tmp_path, 5)
    assert names(tmp_path) == ["step-000000005"]
    assert torch.equal(newest(tmp_path).tensors["parameter.down"], moved.trained["down"])


def test_those_of_later_steps_go_when_the_run_went_on_from_before_them(tmp_path: Path) -> None:
    run = Run()
    for step in (4, 9):
        run.write(tmp_path, step)
    (tmp_path / "step-000000009" / "state.json").write_text("{")
    run.write(tmp_path, 6)
    assert names(tmp_path) == ["step-000000004", "step-000000006"]


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-5])


def _empty(file: Path) -> None:
    file.write_bytes(b"")


def _zeros(file: Path) -> None:
    """A file whose last block the disk has lost."""
    data = file.read_bytes()
    file.write_bytes(data[:-32] + bytes(32))


def _flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-9] ^= 1
    file.write_bytes(data)


def _digit(file: Path) -> None:
    """A file that reads as well as before: another number of seconds, or of the optimizer's steps."""
    data = file.read_bytes()
    at = max(data.rfind(digit) for digit in (b"12.5", b"\x00"))
    file.write_bytes(data[:at] + b"9" + data[at + 1 :])


def _other_json(file: Path) -> None:
    file.write_text("[1, 2]")


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
@pytest.mark.parametrize("damage", [Path.unlink, _cut, _empty, _zeros, _flip, _digit, _other_json])
def test_the_one_before_serves_if_the_newest_is_damaged(
    damage: Callable[[Path], None], name: str, tmp_path: Path
) -> None:
    run = Run()
    for step in (4, 9):
        run.write(tmp_path, step)
    damage(tmp_path / "step-000000009" / name)
    assert newest(tmp_path).progress.step == 4
    damage(tmp_path / "step-000000004" / name)
    with pytest.raises(UsageError, match=r"no checkpoint in .* can be read; start anew with --overwrite") as error:
        newest_checkpoint(tmp_path)
    assert "\n" not in str(error.value)


def _swap(one: Path, other: Path) -> None:
    one.rename(one.with_name("aside"))
    other.rename(one)
    one.with_name("aside").rename(other)


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", ""])
def test_files_of_another_checkpoint_are_noticed(name: str, tmp_path: Path) -> None:
    run = Run()
    for step in (4, 9):
        run.write(tmp_path, step)
        run.go(step, step + 1)
    _swap(tmp_path / "step-000000004" / name, tmp_path / "step-000000009" / name)
    lines: list[str] = []
    with pytest.raises(UsageError, match=r"no checkpoint in .* can be read; start anew with --overwrite"):
        newest_checkpoint(tmp_path, lines.append)
    damaged = [f"warning: the checkpoint {tmp_path}/step-00000000{step} is damaged" for step in (9, 4)]
    assert [line.partition(";")[0] for line in lines] == damaged


def test_none_is_no_error(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    assert newest_checkpoint(tmp_path / "nowhere") is None
    (tmp_path / ".step-000000003").mkdir()
    (tmp_path / "step-3").mkdir()
    assert newest_checkpoint(tmp_path) is None


def test_one_of_another_run_is_refused(tmp_path: Path) -> None:
    Run().write(tmp_path, 5)
    checkpoint = newest(tmp_path)
    run = Run()
    for trained in (
        {"down": nn.Parameter(torch.zeros(5, 4)), "head:bias": run.trained["head:bias"]},
        {"up": run.trained["down"], "head:bias": run.trained["head:bias"]},
    ):
        before = {name: parameter.detach().clone() for name, parameter in trained.items()}
        with pytest.raises(UsageError, match=r"does not fit this run: (down|up) differs"):
            checkpoint.restore(trained, run.optimizer, None)
        assert all(torch.equal(before[name], parameter) for name, parameter in trained.items())


def test_a_full_disk_is_told_and_costs_nothing_older(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run()
    run.write(tmp_path, 5)

    def full(handle: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(TrainingError, match=r"cannot write .*No space left on device"):
        run.write(tmp_path, 6)
    assert names(tmp_path) == ["step-000000005"]
    assert newest(tmp_path).progress.step == 5


def test_nothing_in_it_is_pickled(tmp_path: Path) -> None:
    path = Run().go(0, 2).write(tmp_path, 2)
    assert names(path) == ["state.json", "tensors.safetensors"]
    json.loads((path / "state.json").read_text())


def test_permissions_are_those_of_any_new_directory(tmp_path: Path) -> None:
    path = Run().write(tmp_path, 1)
    (tmp_path / "other").mkdir()
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode


def test_killed_at_any_moment_of_a_write_there_is_always_one_to_go_on_from(tmp_path: Path) -> None:
    run = Run().go(0, 6)
    directory = tmp_path / "checkpoints"
    moment, met = 0, set()
    while True:
        shutil.rmtree(directory, ignore_errors=True)
        run.write(directory, 4)
        run.write(directory, 5)

        def killed(last: int = moment) -> None:
            killing_at(last, directory)
            run.write(directory, 6)

        code = wait(fork(killed))
        checkpoint = newest(directory)
        met.add(checkpoint.progress.step)
        assert torch.equal(checkpoint.tensors["parameter.down"], run.trained["down"])
        # What is left of the attempt does not stand in the way of the next one.
        run.write(directory, 6)
        assert names(directory) == ["step-000000005", "step-000000006"]
        if code == 0:
            break
        assert code == -signal.SIGKILL
        moment += 1
    assert moment > 8
    assert met == {5, 6}


@pytest.mark.parametrize(
    "change",
    [
        *(
            {name: value}
            for name in ("made_with", "made_from", "optimizer", "scaler")
            for value in (None, "x", [], 1.5)
        ),
        {"optimizer": {"a": 1}},
        {"progress": {"step": "3", "best": {}}},
        {"progress": {"step": 3, "best": {"scores": []}}},
        {"progress": {"step": 1, "best": {"value": 0.9, "scores": {"loss": 1.0}}}},
        {"progress": {"seconds": None, "best": {}}},
    ],
)
def test_nonsense_is_damage_even_under_a_digest_that_holds(change: dict[str, Any], tmp_path: Path) -> None:
    from capaft.training.record import checkpoint

    run = Run().go(0, 1)
    state = Checkpoint.capture(Progress(1), run.trained, run.optimizer, None, MADE_WITH, MADE_FROM)
    write_checkpoint(tmp_path, state)
    (directory,) = tmp_path.iterdir()
    record = json.loads((directory / "state.json").read_text()) | change
    del record["digest"]
    record["digest"] = checkpoint._digest((directory / "tensors.safetensors").read_bytes(), record)
    (directory / "state.json").write_text(json.dumps(record))
    with pytest.raises(UsageError, match="can be read"):
        newest_checkpoint(tmp_path)


def test_deep_nesting_is_damage(tmp_path: Path) -> None:
    (tmp_path / "step-000000001").mkdir()
    (tmp_path / "step-000000001" / "state.json").write_text("[" * 100_000)
    with pytest.raises(UsageError, match="can be read"):
        newest_checkpoint(tmp_path)
