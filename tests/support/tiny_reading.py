"""Read a file of given content, with the lines that the reader says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from capaft.data.reading import Reading
from capaft.data.tables import read_rows
from capaft.support.errors import UsageError


def read(path: Path, content: str | bytes, *, strict: bool = False) -> tuple[list[dict[str, Any]], list[str]]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    said: list[str] = []
    return list(read_rows(path, (), Reading(said.append, strict))), said


def refusal(path: Path, content: str | bytes, *, strict: bool = False) -> str:
    with pytest.raises(UsageError) as caught:
        read(path, content, strict=strict)
    message = str(caught.value)
    assert message.startswith(str(path)) or str(path) in message
    assert "\n" not in message
    return message
