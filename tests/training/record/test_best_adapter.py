"""The best adapter of a run, told from any other file."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny

import capaft
from capaft.support.errors import UsageError
from capaft.training.early_stopping import Best
from capaft.training.record.best_adapter import check_best_adapter, keep_last
from capaft.training.record.checkpoint import Progress
from capaft.training.record.run_directory import RunDirectory


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three adapters that differ in their parameters alone."""
    directory = tmp_path_factory.mktemp("files")
    model = tiny.bert()
    adapter = capaft.attach(model, "nola", k=4, rank=1)
    for number in range(3):
        tiny.scramble(adapter, number)
        capaft.save(model, directory / f"{number}")
    return directory


@pytest.fixture
def run(files: Path, tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path)


def kept(run: RunDirectory, file: Path, step: int) -> Progress:
    """The progress of a run whose last evaluation was its best."""
    shutil.copy(file, run.last)
    return Progress(step, keep_last(run, Best(step, 0.5), is_best=True))


def _flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-8])


def _foreign(file: Path) -> None:
    shutil.copy(file.with_name("other"), file)


@pytest.mark.parametrize("damage", [Path.unlink, _flip, _cut, _foreign])
def test_any_other_is_refused(damage: Callable[[Path], None], run: RunDirectory, files: Path) -> None:
    progress = kept(run, files / "0", 4)
    check_best_adapter(run, progress)
    shutil.copy(files / "1", run.path / "other")
    damage(run.adapter)
    with pytest.raises(UsageError, match=r"^--resume: .*adapter\.safetensors.*; restore it, or start anew") as error:
        check_best_adapter(run, progress)
    assert "\n" not in str(error.value)
    # Nothing is missed before the first evaluation.
    check_best_adapter(run, Progress(2))


def test_one_that_no_checkpoint_knows_yet_is_the_runs_own(run: RunDirectory, files: Path) -> None:
    before = kept(run, files / "0", 4)
    after = kept(run, files / "1", 8)
    # The run was killed before the checkpoint of step 8, and goes on from that of step 4.
    check_best_adapter(run, before)
    check_best_adapter(run, after)
    # An older one is no substitute for it.
    shutil.copy(files / "0", run.adapter)
    with pytest.raises(UsageError, match="is not the adapter that this run saved at step 8"):
        check_best_adapter(run, after)
    shutil.copy(files / "2", run.adapter)
    with pytest.raises(UsageError, match="is not the adapter that this run saved at step 4"):
        check_best_adapter(run, before)
    run.last.unlink()
    with pytest.raises(UsageError, match="is not the adapter"):
        check_best_adapter(run, before)


def test_the_last_is_not_the_best(run: RunDirectory, files: Path) -> None:
    best = kept(run, files / "0", 4).best
    shutil.copy(files / "1", run.last)
    progress = Progress(8, keep_last(run, best, is_best=False))
    check_best_adapter(run, progress)
    shutil.copy(run.last, run.adapter)
    with pytest.raises(UsageError, match="is not the adapter that this run saved at step 4"):
        check_best_adapter(run, progress)


def test_an_earlier_version_recorded_no_digest(run: RunDirectory, files: Path) -> None:
    kept(run, files / "0", 4)
    check_best_adapter(run, Progress(4, Best(4, 0.5)))
