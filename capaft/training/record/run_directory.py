"""The directory of a run: its files, and the place of a new one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from capaft.adapter.file.adapter_file import ADAPTER
from capaft.config.local_paths import CONFIG, LOCAL
from capaft.support.errors import UsageError
from capaft.support.paths import named_path

LAST = "last.safetensors"
START = "start.safetensors"
RUNS = Path("runs")
PRIVATE = f"checkpoints/\n{LOCAL}\npredictions.jsonl\ntrackers/\n"
"""What git and the Hugging Face hub leave out of a run: it holds texts, paths and names of this machine."""


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
    def start(self) -> Path:
        """A copy of the adapter that the run started from, with `--init-from`."""
        return self.path / START

    @property
    def checkpoints(self) -> Path:
        """The directory of checkpoints; see `checkpoint`."""
        return self.path / "checkpoints"

    @property
    def predictions(self) -> Path:
        """The predictions of the best adapter for the validation split, if the task reports any."""
        return self.path / "predictions.jsonl"

    @property
    def trackers(self) -> Path:
        """The directory of the trackers' files."""
        return self.path / "trackers"

    @property
    def config(self) -> Path:
        """The resolved configuration; `capaft train --config` repeats the run."""
        return self.path / CONFIG

    @property
    def local(self) -> Path:
        """The paths of model and data on this machine; see `LocalPaths`."""
        return self.path / LOCAL

    @property
    def ignored(self) -> Path:
        """The names of what is not to be shared."""
        return self.path / ".gitignore"

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

    def shared(self) -> tuple[Path, ...]:
        """The files that make a run useful to others, and that hold nothing of this machine or of its data."""
        files = (self.adapter, self.card, self.config, self.results, self.plot)
        return tuple(path for path in files if path.exists())

    def files(self) -> tuple[Path, ...]:
        """Every file that a run writes, beside its checkpoints; the one that marks it as a run comes last."""
        return (
            self.results,
            self.adapter,
            self.last,
            self.start,
            self.metrics,
            self.predictions,
            self.plot,
            self.card,
            self.local,
            self.ignored,
            self.config,
        )

    def irreplaceable(self) -> list[Path]:
        """The files in the directory that no other command may replace; predictions it may."""
        files = [file for file in self.files() if file != self.predictions]
        return [*files, *self.path.glob("*.safetensors")]

    def leftovers(self) -> list[Path]:
        """Files that were being written when the run was killed, and the run it had replaced by then."""
        paths = [path for file in self.files() for path in self.path.glob(f".{file.name}.*")]
        paths += self.checkpoints.glob(".step-*")
        return [*paths, self.replaced] if self.has_trained and self.replaced.exists() else paths

    @property
    def replaced(self) -> Path:
        """The run that is being replaced, kept here until the new one has left something."""
        return self.path / ".replaced"

    @property
    def has_trained(self) -> bool:
        """True if there is an adapter or a checkpoint."""
        return self.adapter.exists() or any(self.checkpoints.glob("step-*"))


def choose_directory(output: str | None, method: str, *, overwrite: bool, resume: bool = False) -> RunDirectory:
    """The directory of a new run, not yet made.

    Args:
        output: the directory that the user named; None for the next free `runs/<method>-<n>`.
        method: canonical name of the method stack.
        overwrite: replace an existing run.
        resume: go on with an existing run.

    Raises:
        UsageError: the directory holds something else, or a run that is not to be replaced or resumed.
    """
    if output is None:
        count = 1
        while (RUNS / f"{method}-{count}").exists():
            count += 1
        return RunDirectory(RUNS / f"{method}-{count}")
    path = named_path("--output", output)
    run = RunDirectory(path)
    if path.exists() and not path.is_dir():
        raise UsageError(f"--output {output} is a file; name a directory that is new or empty")
    present = sorted(set(path.iterdir()) - {run.replaced, *run.leftovers()}) if path.is_dir() else []
    if present and not (path / CONFIG).exists():
        raise UsageError(
            f"--output {output} holds something else ({present[0].name}, ...); name a directory that is new or empty"
        )
    for part in (run.checkpoints, run.trackers, run.replaced):
        # A stranger may have made it, and what it leads to is not the run's.
        if part.is_symlink():
            raise UsageError(f"--output {output}: {part} is a link to {part.readlink()}; remove it")
    if present and not (overwrite or resume):
        raise UsageError(
            f"--output {output} holds a run; name another directory, resume it with --resume, or replace it with "
            "--overwrite"
        )
    return run


def started_config(output: str | None) -> Path | None:
    """The settings file of the run in a directory, or None if there is no run."""
    config = RunDirectory(named_path("--output", output)).config if output else None
    return config if config and config.is_file() else None


@contextmanager
def hold_directory(run: RunDirectory) -> Iterator[None]:
    """Keeps other runs out of a directory for as long as the context lasts; removes it if it stays empty.

    Raises:
        UsageError: another process trains there, or the directory cannot be made.
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
            f"--output {directory}: another process is training here; wait for it, end it, or name another directory"
        ) from None
    except OSError:  # A file system without locks.
        pass
    try:
        yield
    finally:
        os.close(handle)


@contextmanager
def replacing_run(run: RunDirectory, say: Callable[[str], None]) -> Iterator[None]:
    """Sets an existing run aside for as long as the context lasts.

    If the new run fails before it has left an adapter or a checkpoint, the old one is put back, and `say` called.

    Raises:
        UsageError: the old run cannot be moved.
    """
    remove_leftovers(run)
    try:
        if run.replaced.exists():
            # A run that was to replace it was killed before it left anything.
            clear_run(run)
        else:
            run.replaced.mkdir()
            _move(run, run.replaced)
    except OSError as error:
        raise _unwritable(run, error) from None
    try:
        yield
    except BaseException:
        # The whole directory may have been removed under the run.
        if not run.has_trained and run.replaced.is_dir() and any(run.replaced.iterdir()):
            clear_run(run)
            _move(RunDirectory(run.replaced), run.path, back=True)
            say(f"the earlier run in {run.path} has been put back")
        # Only once the old run is back.
        shutil.rmtree(run.replaced, ignore_errors=True)
        raise
    shutil.rmtree(run.replaced, ignore_errors=True)


def _move(run: RunDirectory, target: Path, *, back: bool = False) -> None:
    """Move a run's files: results first, so that it does not look finished; settings last, which make it a run."""
    *others, config = run.files()
    parts = [*others, run.checkpoints, run.trackers, config]
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
        # Results first, so that the run does not look finished; settings last, which make it a run.
        *others, config = run.files()
        for file in others:
            file.unlink(missing_ok=True)
        for directory in (run.checkpoints, run.trackers):
            if directory.exists():
                shutil.rmtree(directory)
        config.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(run, error) from None


def remove_leftovers(run: RunDirectory) -> None:
    """Remove the leftovers of a run that was killed.

    Raises:
        UsageError: one cannot be removed.
    """
    try:
        for path in run.leftovers():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    except OSError as error:
        raise _unwritable(run, error) from None


def _unwritable(run: RunDirectory, error: OSError) -> UsageError:
    return UsageError(f"--output {run.path} cannot be written: {error.strerror or error}")
