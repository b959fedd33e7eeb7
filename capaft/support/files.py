"""Writing files whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from capaft.support.errors import TrainingError, UsageError
from capaft.support.paths import named_path


def check_writable(option: str, path: Path | None) -> None:
    """Make sure that the file that an option names can be written, before minutes are spent on its content.

    Raises:
        UsageError: it is a directory, or its directory cannot be written to.
    """
    if path is None:
        return
    if named_path(option, path).is_dir():
        raise UsageError(f"{option} {path} is a directory; name a file")
    nearest = next(parent for parent in path.absolute().parents if os.path.exists(parent))
    if not (nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)):
        raise UsageError(f"{option} {path}: {nearest} is not a writable directory")


def write_atomically(path: Path, content: bytes | str, *, make_parents: bool = True) -> None:
    """Write a file so that a reader sees the old content or the new, never a part, even after a crash.

    What is no file, such as `/dev/stdout` or a named pipe, is written to as it is, not replaced.

    Args:
        path: the file.
        content: all of it.
        make_parents: make the directories that are missing; a directory that has vanished must not be made again.

    Raises:
        TrainingError: the disk is full or the directory cannot be written; the old file is untouched.
    """
    # Half of a surrogate pair, as names of files and JSON may have, is written as JSON and YAML spell it.
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    temporary = None
    try:
        if path.exists() and not path.is_file():
            with path.open("wb") as stream:
                stream.write(data)
            return
        if make_parents:
            path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name[:40]}.", dir=path.parent)
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        make_ordinary(Path(temporary))
        os.replace(temporary, path)
        temporary = None
        flush_directory(path.parent)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise TrainingError(f"cannot write {path}: {reason}; any file there is unchanged") from None
    finally:
        # Also after an interruption.
        if temporary:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def make_ordinary(path: Path) -> None:
    """Give a file, or a directory with all in it, the permissions of any new one.

    Python's temporary files are private, and so are the weights that safetensors writes.

    Raises:
        OSError: they cannot be changed.
    """
    umask = os.umask(0)
    os.umask(umask)
    for entry in (path, *path.rglob("*")):
        os.chmod(entry, (0o777 if entry.is_dir() else 0o666) & ~umask)


def flush_directory(directory: Path) -> None:
    """Flush the names in a directory to disk, if the system allows it.

    Raises:
        OSError: the directory cannot be opened.
    """
    if os.name != "posix":
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        # Some network file systems cannot flush a directory.
        with contextlib.suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)
