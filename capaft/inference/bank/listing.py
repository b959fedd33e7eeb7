"""The adapters of a bank as their headers describe them: thousands are read in seconds."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from capaft.adapter.file.canonical import parse_json
from capaft.adapter.file.envelope import open_safetensors
from capaft.inference.bank.directory import SUFFIX
from capaft.support.counting import counted
from capaft.support.errors import AdapterFileError
from capaft.support.printable import printable


@dataclass(frozen=True)
class Listed:
    """One adapter of a listing; a file that says nothing of itself has an error.

    Attributes:
        name: its name.
        bytes: bytes of its file; 0 if it cannot be read.
        method: its method stack.
        base: the base model that it names.
        task: the task that it was trained for.
        labels: number of its labels.
        error: the reason why there is nothing to say; empty if there is.
    """

    name: str
    bytes: int = 0
    method: str = ""
    base: str = ""
    task: str = ""
    labels: int = 0
    error: str = ""

    @staticmethod
    def of(path: Path) -> Listed:
        """What the header of a file says, believed as it is: `capaft bank verify` verifies."""
        name = path.name.removesuffix(SUFFIX)
        size = 0
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                # Opening a named pipe would wait for somebody to write to it.
                return Listed(name, error=f"{path} is not a file")
            size = status.st_size
            with path.open("rb") as stream:
                header = parse_json(open_safetensors(path, stream, size)[1])
            task = header["task"] or {"name": "", "labels": []}
            method, base = str(header["method"]["method"]), str(header["base"]["name"] or "")
            return Listed(name, size, method, base, str(task["name"]), len(task["labels"]))
        except AdapterFileError as error:
            return Listed(name, size, error=str(error))
        except OSError as error:
            return Listed(name, size, error=f"cannot read {path}: {error.strerror}")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return Listed(name, size, error=f"{path} is damaged: its header is not that of an adapter")

    def record(self) -> dict[str, Any]:
        """The entry as JSON values; an error alone, where there is one."""
        record = asdict(self)
        if self.error:
            return {"name": self.name, "bytes": self.bytes, "error": self.error}
        del record["error"]
        return record


def listing_text(listed: Sequence[Listed]) -> str:
    """A line for each adapter, in columns, and a last one that adds up."""
    rows = [(entry.name, f"{entry.bytes:,}", entry.error or entry.method, entry.base, entry.task) for entry in listed]
    total = f"{counted(len(listed), 'adapter')}, {sum(entry.bytes for entry in listed):,} bytes"
    if not rows:
        return total
    heads = ("name", "bytes", "method", "base", "task")
    # An error is as long as it likes.
    widths = [
        max(len(head), *(len(row[column]) for row, entry in zip(rows, listed, strict=True) if not entry.error), 0)
        for column, head in enumerate(heads)
    ]

    def line(row: Sequence[str]) -> str:
        cells = (
            cell.rjust(width) if at == 1 else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return printable("  ".join(cells).rstrip())

    return "\n".join([line(heads), *map(line, rows), total])
