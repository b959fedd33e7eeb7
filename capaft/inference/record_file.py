"""Records on their way out: a file of JSON lines or CSV that grows, or lines on stdout."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from capaft.support import strict_json
from capaft.support.console import print_records
from capaft.support.files import growing_file
from capaft.tasks.base.task_answers import Record

Write = Callable[[Sequence[Record]], None]


@contextmanager
def record_output(path: Path | None, fields: Sequence[str], interrupted: Callable[[Path], None]) -> Iterator[Write]:
    """Write records to a file, or print them if there is none, as they come.

    Args:
        path: the file: CSV by its ending `.csv`, else JSON lines.
        fields: names of all fields that a record may have, in their order.
        interrupted: called with the name of what there is, if the writing breaks off.

    Raises:
        TrainingError: the file cannot be written.
    """
    if path is None:
        yield print_records
        return
    with growing_file(path, interrupted) as write:
        if path.suffix.lower() != ".csv":
            yield lambda records: write(strict_json.lines(records))
            return
        write(_csv_lines([dict(zip(fields, fields, strict=True))], fields))
        yield lambda records: write(_csv_lines(records, fields))


def _csv_lines(records: Sequence[Record], fields: Sequence[str]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerows([_cell(record.get(name)) for name in fields] for record in records)
    return stream.getvalue()


def _cell(value: Any) -> Any:
    """A value as a cell: lists and records as JSON, and nothing for what is missing or not finite."""
    if isinstance(value, bool | list | dict):
        return strict_json.lines([value]).rstrip("\n")
    return "" if value is None or value != value else value
