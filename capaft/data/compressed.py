"""The content of a file, unpacked if it is compressed, and the suffix of its format.

The first bytes tell a compressed file: browsers unpack some on their way, and leave the name as it was. Nothing is
unpacked to the disk, and no more than a file of its size can hold, since a few kilobytes may unpack to terabytes. What
is read several times is unpacked each time.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import pyarrow as pa

from capaft.support.errors import UsageError, one_line

COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst", ".zip")
WORKBOOK = ".xlsx"
_ZIP = b"PK\x03\x04"
_OPENERS: dict[bytes, Callable[[str], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
    b"\x28\xb5\x2f\xfd": lambda name: pa.CompressedInputStream(pa.OSFile(name), "zstd"),
}
# Text seldom shrinks to a tenth; much of a small file may be repetition.
_MOST_TIMES = 100
_ALWAYS_ALLOWED = 2**28
_HEAD = 1000
_FAILURES = (
    OSError,
    EOFError,
    ValueError,
    RuntimeError,
    NotImplementedError,
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
    pa.ArrowException,
)


def format_suffix(path: Path) -> str:
    """Suffix of the format in a file's name, in lower case: the one before that of a compression, if there is any."""
    suffix = path.suffix.lower()
    return (Path(path.stem).suffix.lower() or suffix) if suffix in COMPRESSIONS else suffix


def format_stem(path: Path) -> str:
    """Name of a file without the suffixes of its format and its compression."""
    return Path(path.stem).stem if path.suffix.lower() in COMPRESSIONS else path.stem


@dataclass(frozen=True)
class Content:
    """The bytes of a file, which are read when they are needed, and as often.

    Attributes:
        open: opens them at their start.
        path: the file, if they are all that it holds.
    """

    open: Callable[[], BinaryIO]
    path: Path | None = None

    def head(self) -> bytes:
        """The first bytes, as many as tell a format."""
        with self.open() as stream:
            return stream.read(_HEAD)

    def read(self) -> bytes:
        """All of them."""
        with self.open() as stream:
            return stream.read()

    def file(self) -> pa.NativeFile:
        """A file of Arrow that has them: in memory only where they have to be unpacked."""
        return pa.BufferReader(self.read()) if self.path is None else pa.OSFile(str(self.path))


def find_content(path: Path) -> tuple[str, Content]:
    """The suffix of a file's format, and its content.

    What is packed can turn out to be damaged, or too much for a file of its size, when it is read: a `UsageError`.

    Raises:
        UsageError: it is damaged, or an archive of several files.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(6)
        if not head.startswith((_ZIP, *_OPENERS)) or (head.startswith(b"BZh") and not head[3:4].isdigit()):
            if path.is_file():
                return format_suffix(path), Content(lambda: path.open("rb"), path)
            # A pipe can be read but once.
            whole = head + file.read()
            return format_suffix(path), Content(lambda: io.BytesIO(whole))
    limit = most_unpacked(path.stat().st_size)
    if not head.startswith(_ZIP):
        opener = next(opener for magic, opener in _OPENERS.items() if head.startswith(magic))
        return format_suffix(path), _unpacked(path, limit, lambda: opener(str(path)))
    try:
        suffix, name = _only_member(path, limit)
    except _FAILURES as error:
        raise _damaged(path, error) from error
    if name is None:
        return suffix, Content(lambda: path.open("rb"))
    return suffix, _unpacked(path, limit, lambda: zipfile.ZipFile(path).open(name))


def _only_member(path: Path, limit: int) -> tuple[str, str | None]:
    """Suffix and name of the only file in a ZIP archive; a workbook is one, stays as it is, and has no name."""
    with zipfile.ZipFile(path) as archive:
        if "xl/workbook.xml" in archive.namelist():
            if sum(member.file_size for member in archive.infolist()) > limit:
                raise _too_large(path, limit)
            return WORKBOOK, None
        members = [member for member in archive.infolist() if not (member.is_dir() or _is_hidden(member.filename))]
        if len(members) != 1:
            names = ", ".join(member.filename for member in members[:5]) or "nothing"
            raise UsageError(
                f"{path}: this archive holds {names}, and capaft reads one with a single file; unpack it, and give "
                "a file or the directory"
            )
        inner = PurePosixPath(members[0].filename)
        if inner.is_absolute() or ".." in inner.parts or "\\" in members[0].filename:
            raise UsageError(f"{path}: the file in this archive has a name that points elsewhere; unpack it with care")
        if members[0].flag_bits & 1:
            raise UsageError(f"{path}: this archive has a password; unpack it")
        return inner.suffix.lower(), members[0].filename


def _is_hidden(name: str) -> bool:
    """True for what macOS and other systems add."""
    return any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts if part != "..")


class _Unpacking(io.RawIOBase):
    """A stream of unpacked bytes that ends with a `UsageError` if it is damaged, or longer than its limit."""

    def __init__(self, path: Path, limit: int, opener: Callable[[], Any]) -> None:
        self._path = path
        self._limit = limit
        self._size = 0
        try:
            self._stream = opener()
        except _FAILURES as error:
            raise _damaged(path, error) from error

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            chunk = self._stream.read(len(buffer))
        except _FAILURES as error:
            raise _damaged(self._path, error) from error
        self._size += len(chunk)
        if self._size > self._limit:
            raise _too_large(self._path, self._limit)
        buffer[: len(chunk)] = chunk
        return len(chunk)

    def close(self) -> None:
        if not self.closed and hasattr(self, "_stream"):
            self._stream.close()
        super().close()


def _unpacked(path: Path, limit: int, opener: Callable[[], Any]) -> Content:
    return Content(lambda: io.BufferedReader(_Unpacking(path, limit, opener), 2**16))


def _damaged(path: Path, error: BaseException) -> UsageError:
    return UsageError(f"{path}: cannot unpack this file ({one_line(error)}); get it again")


def most_unpacked(size: int) -> int:
    """Bytes that a packed file of `size` bytes may unpack to."""
    return max(_ALWAYS_ALLOWED, _MOST_TIMES * size)


def _too_large(path: Path, limit: int) -> UsageError:
    return UsageError(
        f"{path}: it unpacks to more than {limit >> 20} MiB, too much for a data file of this size; if you trust it, "
        "unpack it yourself"
    )
