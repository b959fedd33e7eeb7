"""The record of a run: every step once, also when the run was interrupted."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from capaft.support.errors import TrainingError
from capaft.training.record import journal
from capaft.training.record.journal import Journal

PACE = {"examples_per_second", "seconds_left", "peak_memory_bytes"}


def silent() -> Console:
    return Console(file=io.StringIO())


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def write(file: Path, first: int, last: int, **options: Any) -> Journal:
    """A journal of the steps from `first` to `last`, with an evaluation after every second one."""
    with Journal(options.pop("console", silent()), file, 10, done=first, **options) as made:
        for step in range(first + 1, last + 1):
            made.step(step, step / 4, 1 / step, 1e-3, 8)
            if step % 2 == 0:
                made.evaluation(step, step / 4, "f1", {"loss": 0.5, "f1": 0.1 * step, "accuracy": 0.9}, step == 4)
    return made


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, to be changed."""
    now = [100.0]
    monkeypatch.setattr(journal.time, "perf_counter", lambda: now[0])
    return now


def test_every_record_has_speed_memory_and_time_left(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    made = write(file, 0, 4)
    rows = lines(file)
    assert rows == [asdict(record) for record in made.records]
    assert [record["step"] for record in rows] == [1, 2, 2, 3, 4, 4]
    assert all(record.keys() >= PACE | {"step", "epoch"} for record in rows)
    assert all(record["peak_memory_bytes"] > 2**20 for record in rows)
    assert {key: rows[0][key] for key in ("epoch", "loss", "lr")} == {"epoch": 0.25, "loss": 1.0, "lr": 1e-3}
    expected = {"metric": "f1", "value": 0.4, "validation_loss": 0.5, "best": True}
    assert rows[-1].items() >= expected.items()
    assert rows[-1]["scores"] == {"f1": 0.4, "accuracy": 0.9}


def test_speed_and_time_left(tmp_path: Path, clock: list[float]) -> None:
    with Journal(silent(), tmp_path / "m", 10, done=4, seconds=50.0) as made:
        for step in (5, 6):
            clock[0] += 3.0
            made.step(step, 1.0, 0.5, 1e-3, 12)
    # Two of six steps took six seconds, after the fifty of an earlier start.
    assert made.records[-1].seconds_left == 12.0
    assert made.records[-1].examples_per_second == 4.0
    assert made.examples_per_second == 4.0
    assert made.seconds == 56.0


def test_going_on_cuts_off_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    whole, file = tmp_path / "whole", tmp_path / "metrics.jsonl"
    write(whole, 0, 10)
    write(file, 0, 7)
    with file.open("a") as stream:
        stream.write('{"step": 8, "lo')
    write(file, 4, 10)

    def timeless(path: Path) -> list[dict[str, Any]]:
        return [{key: value for key, value in record.items() if key not in PACE} for record in lines(path)]

    assert timeless(file) == timeless(whole)


@pytest.mark.parametrize("content", ["", "\n", '{"step": 1', "\x00\x00", "no json"])
def test_a_record_that_was_lost_is_no_reason_to_stop(content: str, tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text(content)
    write(file, 2, 3)
    assert [record["step"] for record in lines(file)] == [3]


@pytest.mark.parametrize("damage", ["", "no json", "null", '{"step": 1}', "\udcff"])
def test_a_damaged_line_costs_no_other(damage: str, tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    write(file, 0, 4)
    rows = file.read_text().splitlines()
    rows[1] = damage
    file.write_text("\n".join(rows) + "\n", errors="surrogateescape")
    write(file, 4, 5)
    assert [record["step"] for record in lines(file)] == [1, 2, 3, 4, 4, 5]
    assert [record.get("best") for record in lines(file)] == [None, False, None, None, True, None]


def test_a_new_run_begins_a_new_record(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    write(file, 0, 3)
    write(file, 0, 1)
    assert [record["step"] for record in lines(file)] == [1]


def test_all_but_the_first_process_write_nothing(tmp_path: Path) -> None:
    console = silent()
    made = write(tmp_path / "metrics.jsonl", 0, 2, quiet=True, console=console)
    assert list(tmp_path.iterdir()) == []
    assert console.file.getvalue() == ""  # type: ignore[attr-defined]
    assert len(made.records) == 3


def test_trackers_are_told_the_numbers(tmp_path: Path) -> None:
    tracked: list[tuple[int, dict[str, Any]]] = []
    write(tmp_path / "m", 0, 2, track=lambda values, step: tracked.append((step, values)))
    assert [step for step, _ in tracked] == [1, 2, 2]
    assert all(isinstance(value, int | float) for _, values in tracked for value in values.values())
    assert tracked[0][1]["loss"] == 1.0
    assert tracked[2][1].items() >= {"f1": 0.2, "accuracy": 0.9, "validation_loss": 0.5, "value": 0.2}.items()


def test_without_a_terminal_there_are_plain_lines_now_and_then(tmp_path: Path, clock: list[float]) -> None:
    console = silent()
    with Journal(console, tmp_path / "m", 100) as made:
        for step in range(1, 41):
            clock[0] += 1.0
            made.step(step, 0.1, 0.5, 1e-3, 8)
    printed = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert printed == [
        "step 16/100  loss 0.5000  lr 1.0e-03  8 examples/s  84 s left",
        "step 32/100  loss 0.5000  lr 1.0e-03  8 examples/s  68 s left",
    ]


def test_a_disk_that_fills_up_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with Journal(silent(), tmp_path / "m", 10) as made:
        made.step(1, 0.1, 0.5, 1e-3, 8)
        made.keep()
        monkeypatch.setattr(journal.os, "fsync", full)
        with pytest.raises(TrainingError, match=r"cannot write .*: No space left on device"):
            made.keep()


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no disk that is always full")
def test_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / "m").symlink_to("/dev/full")
    made = Journal(silent(), tmp_path / "m", 10)
    made._stream = journal._open(tmp_path / "m")

    def train() -> None:
        try:
            made.step(1, 0.1, 0.5, 1e-3, 8)
        finally:
            made.__exit__(None, None, None)

    with pytest.raises(TrainingError, match=r"cannot write .*: No space left on device"):
        train()


@pytest.mark.parametrize("vanish", ["file", "directory", "moved", "replaced"])
def test_a_run_that_is_removed_ends_at_the_next_record(vanish: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with Journal(silent(), run / "metrics.jsonl", 10) as made:
        made.step(1, 0.1, 0.5, 1e-3, 8)
        if vanish == "file":
            (run / "metrics.jsonl").unlink()
        elif vanish == "directory":
            shutil.rmtree(run)
        else:
            run.rename(tmp_path / "elsewhere")
        if vanish == "replaced":
            shutil.copytree(tmp_path / "elsewhere", run)
        with pytest.raises(TrainingError, match=r"metrics\.jsonl was removed, moved or replaced .*; put its directory"):
            made.step(2, 0.2, 0.5, 1e-3, 8)
    assert run.exists() == (vanish in ("file", "replaced"))
