"""Read lists that a cell of CSV holds as text: as JSON, or as Python prints them."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from capaft.data.lazy import Derived
from capaft.support.errors import UsageError

# Python joins neighbouring strings, so that this would be one string in a list.
_NUMPY = re.compile(r"""\[\s*('[^']*'|"[^"]*")(\s+('[^']*'|"[^"]*"))+\s*\]""")
_LONGEST = 100_000


def list_cells(path: Path, name: str, cells: Sequence[str]) -> Sequence[Any] | None:
    """The values of a column whose cells are all lists, or all records, written as text; None for any other column.

    A blank cell is a missing value.

    Raises:
        UsageError: numpy wrote them, without commas.
    """
    if not all(cell[0] + cell[-1] in ("[]", "{}") for cell in _filled(cells)):
        return None
    if any(map(_NUMPY.fullmatch, _filled(cells))):
        raise UsageError(
            f"{path}: column {name!r} holds lists without commas, as numpy prints arrays; write them as JSON"
        )
    values = Derived(_value, cells)
    try:
        # Each is read, and not just the first that has something in it.
        sizes = sum(map(bool, values))
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None
    return values if sizes else None


def _filled(cells: Sequence[str]) -> Iterator[str]:
    return (bare for cell in cells if (bare := cell.strip()))


def _value(cell: str) -> Any:
    return _parsed(cell) if cell.strip() else None


def _parsed(cell: str) -> Any:
    """A list or a record.

    Raises:
        ValueError: the text is none, or is not written as JSON or Python would.
    """
    try:
        value = json.loads(cell)
    except ValueError:
        if len(cell) > _LONGEST:
            raise
        value = ast.literal_eval(cell.strip())
        if repr(value) != cell.strip():
            raise ValueError("not as Python prints it") from None
    if not isinstance(value, list | dict):
        raise ValueError("neither a list nor a record")
    return value
