"""A cache of directories that several processes share: each there whole or not at all, all within a bound of bytes.

A directory that a live process was given is never removed, since the process may read it at any time. Each process
holds a lock on a file of its own that lists them; the lock ends with the process, however it ends. Whatever else is
there goes by the time of its last use.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from capaft.support.errors import TrainingError

_LOCK, _LEASES = ".lock", ".leases"
# Seconds after which a directory that is still being made is what a killed process left.
_ABANDONED = 24 * 3600


class DirectoryCache:
    """Directories by key, made when they are asked for.

    Attributes:
        root: the directory that holds them.
        most_bytes: all of them together have at most that many.
    """

    def __init__(self, root: Path, most_bytes: int) -> None:
        self.root = root
        self.most_bytes = most_bytes
        self._lease: IO[str] | None = None
        self._given_keys: set[str] = set()
        self._mutex = threading.Lock()

    def get(self, key: str, make: Callable[[Path], None]) -> Path:
        """The directory of a key, which stays as long as this process lives or until `close`.

        Args:
            key: a name of letters and digits.
            make: fills a new directory; not called if the directory is there.

        Raises:
            TrainingError: there is no room for it beside those that live processes hold, or the disk is full.
        """
        path = self.root / key
        try:
            (self.root / _LEASES).mkdir(parents=True, exist_ok=True)
            with self._locked():
                if path.is_dir():
                    return self._given(path)
            aside = Path(tempfile.mkdtemp(prefix=f".{key}.", dir=self.root))
            try:
                make(aside)
                with self._locked():
                    if not path.is_dir():  # Another process may have made it meanwhile.
                        self._make_room(_size(aside))
                        aside.rename(path)
                    return self._given(path)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
        except OSError as error:
            raise TrainingError(f"cannot write {path}: {error.strerror or error}") from None

    def close(self) -> None:
        """Let go of all directories that this process was given."""
        with self._mutex:
            if self._lease:
                self._lease.close()
                Path(self._lease.name).unlink(missing_ok=True)
                self._lease = None
                self._given_keys.clear()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other threads and processes from adding and removing."""
        with self._mutex, (self.root / _LOCK).open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def _given(self, path: Path) -> Path:
        """Note that this process was given a directory just now."""
        if self._lease is None:
            handle, name = tempfile.mkstemp(prefix=f"{os.getpid()}-", dir=self.root / _LEASES)
            os.close(handle)
            self._lease = open(name, "w", encoding="utf-8")  # noqa: SIM115 - open for as long as the process lives
            fcntl.flock(self._lease, fcntl.LOCK_EX)
        if path.name not in self._given_keys:
            self._lease.write(f"{path.name}\n")
            self._lease.flush()
            self._given_keys.add(path.name)
        os.utime(path)
        return path

    def _make_room(self, needed: int) -> None:
        """Remove the directories that were used least recently and are in nobody's hands.

        Raises:
            TrainingError: that does not make enough room; nothing was removed.
        """
        self._remove_abandoned()
        held = self._held()
        entries = [entry for entry in self.root.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
        sizes = {entry: _size(entry) for entry in entries}
        excess = sum(sizes.values()) + needed - self.most_bytes
        free = sorted((entry for entry in entries if entry.name not in held), key=lambda entry: entry.stat().st_mtime)
        if excess > sum(sizes[entry] for entry in free):
            raise TrainingError(
                f"{self.root} has no room for {needed:,} more bytes: its limit is {self.most_bytes:,}, and live "
                "processes hold the rest"
            )
        for entry in free:
            if excess <= 0:
                return
            gone = Path(tempfile.mkdtemp(prefix=".gone.", dir=self.root))
            entry.rename(gone / entry.name)
            shutil.rmtree(gone, ignore_errors=True)
            excess -= sizes[entry]

    def _remove_abandoned(self) -> None:
        """Remove what processes were making when they were killed."""
        for entry in self.root.glob(".*"):
            with suppress(FileNotFoundError):
                is_old = time.time() - entry.stat().st_mtime > _ABANDONED
                if is_old and entry.is_dir() and entry.name != _LEASES:
                    shutil.rmtree(entry, ignore_errors=True)

    def _held(self) -> set[str]:
        """The keys of the directories in the hands of live processes; what dead ones left is removed."""
        keys: set[str] = set()
        for file in (self.root / _LEASES).iterdir():
            with suppress(FileNotFoundError), file.open(encoding="utf-8") as stream:
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    keys.update(stream.read().split())
                else:
                    file.unlink()
        return keys


def _size(directory: Path) -> int:
    """Bytes of the files in a directory."""
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
