"""Writing directories whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from capaft.support.errors import TrainingError, UsageError
from capaft.support.files import flush_directory, make_ordinary
from capaft.support.signals import uninterrupted


def check_directory(output: str | Path, path: Path, mark: str, what: str, *, overwrite: bool = False) -> None:
    """Make sure that the directory that `--output` names may be written.

    Args:
        output: the directory as the user names it.
        path: the directory.
        mark: the file by which a directory of the kind is known.
        what: such a directory's content, in a message.
        overwrite: such a directory may be replaced.

    Raises:
        UsageError: it is a file, cannot be moved, or holds something that is not to be replaced.
    """
    if path.is_dir() and Path.cwd().is_relative_to(path.resolve()):
        raise UsageError(f"--output {output} is the directory that you are in; name one below it")
    if path.is_dir() and path.is_mount():
        raise UsageError(f"--output {output} is where a disk is mounted; name a directory below it")
    if path.exists() and not path.is_dir():
        raise UsageError(f"--output {output} is a file; name a directory that is new or empty")
    if not path.is_dir() or not any(path.iterdir()):
        return
    if not (path / mark).exists():
        raise UsageError(f"--output {output} holds something else; name a directory that is new or empty")
    if not overwrite:
        raise UsageError(f"--output {output} holds {what}; name another directory, or replace it with --overwrite")


@contextmanager
def written_whole(output: str | Path, path: Path) -> Iterator[Path]:
    """A new directory to write to, which takes the place of another when the context ends, and only then.

    Args:
        output: the other directory as the user names it.
        path: the other directory, whether or not it is there.

    Raises:
        TrainingError: the disk is full or cannot be written.
    """
    # Where a link leads to, so that the link stays.
    path = path.resolve()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = None
        try:
            with uninterrupted():
                aside = Path(tempfile.mkdtemp(prefix=f".{path.name[:40]}.", dir=path.parent))
            yield aside
            make_ordinary(aside)
            flush_directory(aside)
            with uninterrupted():
                replace_directory(path, aside)
        finally:
            if aside:
                shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise TrainingError(f"cannot write {output}: {error.strerror or error}; nothing was left there") from None


def replace_directory(path: Path, aside: Path) -> None:
    """Put a directory in the place of another, which is moved away first and only then removed.

    Raises:
        OSError: it cannot be moved; the other is where it was.
    """
    old = aside.with_name(f"{aside.name}.old")
    if path.exists():
        path.rename(old)
    try:
        aside.rename(path)
    except OSError:
        if old.exists():
            old.rename(path)
        raise
    flush_directory(path.parent)
    shutil.rmtree(old, ignore_errors=True)
