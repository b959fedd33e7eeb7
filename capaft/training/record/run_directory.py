"""A run's directory: what its files are called, where a new one goes, and how an old one is found again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from capaft.support.errors import UsageError, did_you_mean

ADAPTER = "adapter.safetensors"
LAST = "last.safetensors"
CONFIG = "run.yaml"
RUNS = Path("runs")


@dataclass(frozen=True)
class RunDirectory:
    """The files of one run."""

    path: Path

    @property
    def adapter(self) -> Path:
        """The adapter file."""
        return self.path / ADAPTER

    @property
    def last(self) -> Path:
        """The adapter of the last evaluation."""
        return self.path / LAST

    @property
    def checkpoints(self) -> Path:
        """The directory of checkpoints; see `checkpoint`."""
        return self.path / "checkpoints"

    @property
    def predictions(self) -> Path:
        """What the best adapter predicted for the validation split, where the task says."""
        return self.path / "predictions.jsonl"

    @property
    def trackers(self) -> Path:
        """Where trackers put their files."""
        return self.path / "trackers"

    @property
    def config(self) -> Path:
        """The resolved configuration; `capaft train --config` repeats the run."""
        return self.path / CONFIG

    @property
    def metrics(self) -> Path:
        """One JSON record a line: training steps and evaluations."""
        return self.path / "metrics.jsonl"

    @property
    def results(self) -> Path:
        """The results, as one JSON document."""
        return self.path / "results.json"

    @property
    def plot(self) -> Path:
        """The loss curve."""
        return self.path / "loss.png"

    @property
    def card(self) -> Path:
        """The model card."""
        return self.path / "README.md"

    def files(self) -> tuple[Path, ...]:
        """Every file that a run writes, beside its checkpoints; what makes it one comes last."""
        return (
            self.results,
            self.adapter,
            self.last,
            self.metrics,
            self.predictions,
            self.plot,
            self.card,
            self.config,
        )

    def leftovers(self) -> list[Path]:
        """What was being written when the run was killed, and what it had replaced by then."""
        found = [left for file in self.files() for left in self.path.glob(f".{file.name}.*")]
        found += self.checkpoints.glob(".step-*")
        return [*found, self.replaced] if self.has_trained and self.replaced.exists() else found

    @property
    def replaced(self) -> Path:
        """Where the run that is being replaced lies until the new one has left something."""
        return self.path / ".replaced"

    @property
    def has_trained(self) -> bool:
        """Whether an adapter or a checkpoint is there."""
        return self.adapter.exists() or any(self.checkpoints.glob("step-*"))


def choose_directory(output: str | None, method: str, *, overwrite: bool, resume: bool = False) -> RunDirectory:
    """The directory of a new run, not yet made.

    Args:
        output: what the user asked for; None for the next free `runs/<method>-<n>`.
        method: canonical name of the method stack.
        overwrite: replace a run that is there.
        resume: go on with a run that is there.

    Raises:
        UsageError: something else is there, or a run that `overwrite` does not cover.
    """
    if output is None:
        count = 1
        while (RUNS / f"{method}-{count}").exists():
            count += 1
        return RunDirectory(RUNS / f"{method}-{count}")
    path = Path(output).expanduser()
    run = RunDirectory(path)
    if path.exists() and not path.is_dir():
        raise UsageError(f"--output {output} is a file; name a directory that is new or empty")
    present = sorted(set(path.iterdir()) - {run.replaced, *run.leftovers()}) if path.is_dir() else []
    if present and not (path / CONFIG).exists():
        raise UsageError(
            f"--output {output} holds something else ({present[0].name}, ...); name a directory that is new or empty"
        )
    if present and not (overwrite or resume):
        raise UsageError(
            f"--output {output} holds a run; name another directory, go on with it by --resume, or replace it with "
            "--overwrite"
        )
    return run


def started_config(output: str | None) -> Path | None:
    """The settings of the run that is in a directory, if one is."""
    found = RunDirectory(Path(output).expanduser()).config if output else None
    return found if found and found.is_file() else None


@contextmanager
def hold_directory(run: RunDirectory) -> Iterator[None]:
    """Keeps other runs out of a directory for as long as the context lasts; it is made, and goes if it stays empty.

    Raises:
        UsageError: another process trains there, or it cannot be made.
    """
    made = [path for path in (run.path, *run.path.parents) if not path.exists()]
    try:
        run.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(run, error) from None
    try:
        with _locked(run.path):
            yield
    finally:
        with suppress(OSError):
            for path in made:
                path.rmdir()


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:  # Windows has none.
        yield
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise UsageError(
            f"--output {directory}: another process is training there; wait for it, end it, or name another directory"
        ) from None
    except OSError:  # A file system without locks.
        pass
    try:
        yield
    finally:
        os.close(handle)


@contextmanager
def replacing_run(run: RunDirectory, say: Callable[[str], None]) -> Iterator[None]:
    """Puts the run that is there aside for as long as the context lasts.

    If what is done in it fails before it has left an adapter or a checkpoint, the old run is put back, and `say` told.

    Raises:
        UsageError: it cannot be moved.
    """
    remove_leftovers(run)
    try:
        if run.replaced.exists():
            # What was to replace it was killed before it had anything to leave.
            clear_run(run)
        else:
            run.replaced.mkdir()
            _move(run, run.replaced)
    except OSError as error:
        raise _unwritable(run, error) from None
    try:
        yield
    except BaseException:
        if not run.has_trained and any(run.replaced.iterdir()):
            clear_run(run)
            _move(RunDirectory(run.replaced), run.path, back=True)
            say(f"the run that was in {run.path} is there as before")
        # Not before it is back.
        shutil.rmtree(run.replaced, ignore_errors=True)
        raise
    shutil.rmtree(run.replaced, ignore_errors=True)


def _move(run: RunDirectory, target: Path, *, back: bool = False) -> None:
    """Without its results a run is not taken for finished, and without its configuration for none."""
    *others, configuration = run.files()
    parts = [*others, run.checkpoints, run.trackers, configuration]
    for part in reversed(parts) if back else parts:
        if part.exists():
            part.rename(target / part.name)


def clear_run(run: RunDirectory) -> None:
    """Remove the files of a run.

    Raises:
        UsageError: they cannot be removed.
    """
    remove_leftovers(run)
    try:
        # Without its results a run is not taken for finished, and without its configuration for none.
        *others, configuration = run.files()
        for file in others:
            file.unlink(missing_ok=True)
        for directory in (run.checkpoints, run.trackers):
            if directory.exists():
                shutil.rmtree(directory)
        configuration.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(run, error) from None


def remove_leftovers(run: RunDirectory) -> None:
    """Remove what was being written when the run was killed, and what it had replaced by then.

    Raises:
        UsageError: it cannot be removed.
    """
    try:
        for left in run.leftovers():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    except OSError as error:
        raise _unwritable(run, error) from None


def _unwritable(run: RunDirectory, error: OSError) -> UsageError:
    return UsageError(f"--output {run.path} cannot be written: {error.strerror or error}")


def find_adapter_file(given: str) -> tuple[Path, RunDirectory | None]:
    """The adapter file that RUN means, and its run directory if it has one.

    Args:
        given: a run directory or an adapter file.

    Raises:
        UsageError: there is neither.
    """
    path = Path(given).expanduser()
    if path.is_dir():
        run = RunDirectory(path)
        if not run.adapter.exists():
            raise UsageError(f"{given} holds no {ADAPTER}; give the directory of a finished run, or an adapter file")
        return run.adapter, run
    if path.is_file():
        beside = RunDirectory(path.parent)
        return path, beside if path.name in (ADAPTER, LAST) and beside.config.exists() else None
    runs = [str(each.parent) for each in sorted(RUNS.glob(f"*/{ADAPTER}"))]
    hint = did_you_mean(str(path), runs)
    raise UsageError(f"there is no run or adapter file {given}{hint or '; give a run directory or an adapter file'}")
