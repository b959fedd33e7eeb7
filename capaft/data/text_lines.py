"""The lines of a text file, decoded."""

from __future__ import annotations

import codecs
import io
from pathlib import Path

from capaft.support.errors import UsageError

# UTF-32's mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def text_lines(path: Path, content: bytes) -> list[str]:
    """The lines with their ends. A file is UTF-8, unless it begins with the byte order mark of UTF-16 or UTF-32.

    Only a line feed ends a line, since text may contain U+2028; in a file without any, a carriage return does.

    Raises:
        UsageError: the file has another encoding.
    """
    mark, encoding = next(((mark, name) for mark, name in _MARKS if content.startswith(mark)), (b"", "utf-8"))
    content = content.removeprefix(mark)
    if encoding == "utf-8" and _is_wide(content[:4]):
        raise UsageError(f"{path}: this is UTF-16 without its byte order mark; save the file as UTF-8 text")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        number = content[: error.start].decode(encoding, "replace").count("\n") + 1
        name = encoding[:6].upper()
        raise UsageError(f"{path}: line {number} is not {name}; save the file as UTF-8 text") from None
    if "\n" not in text:
        text = text.replace("\r", "\n")
    return io.StringIO(text, newline="\n").readlines()


def _is_wide(head: bytes) -> bool:
    """True if the first bytes are two letters of UTF-16."""
    zeros = [byte == 0 for byte in head]
    return zeros in ([False, True] * 2, [True, False] * 2)
