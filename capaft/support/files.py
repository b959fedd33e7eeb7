"""Writing files whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
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


def check_apart(option: str, path: Path | None, *read: str | Path | None) -> None:
    """Make sure that the file that an option names is none of those that are read.

    Args:
        option: the option.
        path: the file.
        read: what is read; what is no path of a file is passed over.

    Raises:
        UsageError: it is one of them.
    """
    if path is None or not path.is_file():
        return
    for source in filter(None, read):
        place = os.path.expanduser(str(source))
        if os.path.exists(place) and os.path.samefile(place, path):
            raise UsageError(f"{option} {path} would replace what is read; name another file")


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


@contextlib.contextmanager
def growing_file(path: Path, interrupted: Callable[[Path], None]) -> Iterator[Callable[[str], None]]:
    """Write a file piece by piece that has its name only once it is whole.

    If the writing breaks off, what there is gets the name with `.part` behind it, and a file of the name itself is
    unchanged. What is no file, such as a named pipe, is written to as it is.

    Args:
        path: the file.
        interrupted: called with the name of the part, if the writing breaks off and there is one.

    Yields:
        A function that takes the next piece.

    Raises:
        TrainingError: the disk is full or the directory cannot be written.
    """
    is_special = path.exists() and not path.is_file()
    temporary: str | None = None
    written = False

    def failed(error: OSError) -> TrainingError:
        return TrainingError(f"cannot write {path}: {error.strerror or error}; any file there is unchanged")

    try:
        if is_special:
            stream = path.open("wb")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(prefix=f".{path.name[:40]}.", dir=path.parent)
            stream = os.fdopen(handle, "wb")
    except OSError as error:
        raise failed(error) from None

    def write(piece: str) -> None:
        nonlocal written
        try:
            stream.write(piece.encode(errors="backslashreplace"))
            stream.flush()
        except OSError as error:
            raise failed(error) from None
        written = True

    try:
        yield write
        if temporary:
            try:
                os.fsync(stream.fileno())
                stream.close()
                make_ordinary(Path(temporary))
                os.replace(temporary, path)
                temporary = None
                flush_directory(path.parent)
            except OSError as error:
                raise failed(error) from None
    finally:
        with contextlib.suppress(OSError):
            stream.close()
        if temporary:
            _keep_part(Path(temporary), path.with_name(f"{path.name}.part"), interrupted if written else None)


def _keep_part(temporary: Path, part: Path, interrupted: Callable[[Path], None] | None) -> None:
    """Give what was written of a file its name, or remove it if that is nothing."""
    with contextlib.suppress(OSError):
        if interrupted is None:
            temporary.unlink()
            return
        make_ordinary(temporary)
        temporary.replace(part)
        interrupted(part)


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
