"""Writing files whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from capaft.support.errors import TrainingError, UsageError


def check_writable(option: str, path: Path | None) -> None:
    """Make sure that the file that an option names can be written, before minutes go into what it is to hold.

    Raises:
        UsageError: it is a directory, or where it should lie nothing can be written.
    """
    if path is None:
        return
    if path.is_dir():
        raise UsageError(f"{option} {path} is a directory; name a file")
    nearest = next(each for each in path.absolute().parents if os.path.exists(each))
    if not (nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)):
        raise UsageError(f"{option} {path}: {nearest} is no directory that can be written to")


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new, never a part.

    Raises:
        TrainingError: the disk is full or the directory cannot be written; the old file is untouched.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        # mkstemp makes files private; what is shared gets the permissions of any new file.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
        flush_directory(path.parent)
    except OSError as error:
        if temporary:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        reason = error.strerror or str(error)
        raise TrainingError(f"cannot write {path}: {reason}; what was there before is unchanged") from None


def flush_directory(directory: Path) -> None:
    """Make sure that the names in a directory are on the disk, where the system can be asked to.

    Raises:
        OSError: it cannot be opened.
    """
    if os.name != "posix":
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        # Some network file systems do not know how to flush a directory.
        with contextlib.suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)
