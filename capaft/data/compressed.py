"""The content of a file, unpacked if it is compressed, and the suffix of its format.

The first bytes tell a compressed file: browsers unpack some on their way, and leave the name as it was. Nothing is
unpacked to the disk, and no more than a file of its size can hold, since a few kilobytes may unpack to terabytes.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

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
_CHUNK = 2**20
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


def read_content(path: Path) -> tuple[str, bytes]:
    """The suffix of a file's format, and its content.

    Raises:
        UsageError: it is damaged, unpacks to more than such a file can hold, or is an archive of several files.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(6)
        if not head.startswith((_ZIP, *_OPENERS)) or (head.startswith(b"BZh") and not head[3:4].isdigit()):
            return format_suffix(path), head + file.read()
    limit = most_unpacked(path.stat().st_size)
    try:
        if head.startswith(_ZIP):
            return _only_member(path, limit)
        opener = next(opener for magic, opener in _OPENERS.items() if head.startswith(magic))
        with opener(str(path)) as stream:
            return format_suffix(path), _bounded(path, stream, limit)
    except _FAILURES as error:
        raise UsageError(f"{path}: cannot unpack this file ({one_line(error)}); get it again") from error


def _only_member(path: Path, limit: int) -> tuple[str, bytes]:
    """The only file in a ZIP archive; a workbook is one, and stays as it is."""
    with zipfile.ZipFile(path) as archive:
        if "xl/workbook.xml" in archive.namelist():
            if sum(member.file_size for member in archive.infolist()) > limit:
                raise _too_large(path, limit)
            return WORKBOOK, path.read_bytes()
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
        with archive.open(members[0]) as stream:
            return inner.suffix.lower(), _bounded(path, stream, limit)


def _is_hidden(name: str) -> bool:
    """True for what macOS and other systems add."""
    return any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts if part != "..")


def _bounded(path: Path, stream: Any, limit: int) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while chunk := stream.read(_CHUNK):
        size += len(chunk)
        if size > limit:
            raise _too_large(path, limit)
        chunks.append(chunk)
    return b"".join(chunks)


def most_unpacked(size: int) -> int:
    """Bytes that a packed file of `size` bytes may unpack to."""
    return max(_ALWAYS_ALLOWED, _MOST_TIMES * size)


def _too_large(path: Path, limit: int) -> UsageError:
    return UsageError(
        f"{path}: it unpacks to more than {limit >> 20} MiB, too much for a data file of this size; if you trust it, "
        "unpack it yourself"
    )
