"""The lines of a text file, decoded as they are read."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from capaft.data.compressed import Content
from capaft.support.errors import UsageError

# UTF-32's mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_CHUNK = 2**16


@dataclass(frozen=True)
class TextLines:
    """The lines of a text with their ends, read from its start at each iteration."""

    _content: Content
    _mark: bytes
    _encoding: str
    _end: str

    def __iter__(self) -> Iterator[str]:
        with self._content.open() as stream:
            stream.read(len(self._mark))
            lines = io.TextIOWrapper(stream, self._encoding, newline=self._end)
            yield from lines if self._end == "\n" else (line.replace("\r", "\n") for line in lines)


def text_lines(path: Path, content: Content) -> TextLines:
    """The lines of a file. It is UTF-8, unless it begins with the byte order mark of UTF-16 or UTF-32.

    Only a line feed ends a line, since text may contain U+2028; in a file without any, a carriage return does.

    Raises:
        UsageError: the file has another encoding.
    """
    head = content.head()
    mark, encoding = next(((mark, name) for mark, name in _MARKS if head.startswith(mark)), (b"", "utf-8"))
    if encoding == "utf-8" and _is_wide(head[len(mark) :][:4]):
        raise UsageError(f"{path}: this is UTF-16 without its byte order mark; save the file as UTF-8 text")
    decoder = codecs.getincrementaldecoder(encoding)()
    feeds = 0
    with content.open() as stream:
        stream.read(len(mark))
        try:
            while chunk := stream.read(_CHUNK):
                feeds += decoder.decode(chunk).count("\n")
            decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            number = feeds + error.object[: error.start].decode(encoding, "replace").count("\n") + 1
            name = encoding[:6].upper()
            raise UsageError(f"{path}: line {number} is not {name}; save the file as UTF-8 text") from None
    return TextLines(content, mark, encoding, "\n" if feeds else "\r")


def _is_wide(head: bytes) -> bool:
    """True if the first bytes are two letters of UTF-16."""
    zeros = [byte == 0 for byte in head]
    return zeros in ([False, True] * 2, [True, False] * 2)
