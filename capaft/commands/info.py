"""`capaft info`: verify an adapter file and describe it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from capaft.commands.reporting import Json, Run, reporting
from capaft.support import strict_json
from capaft.support.activity import activity
from capaft.support.console import print_result
from capaft.support.printable import printable

if TYPE_CHECKING:
    from capaft.adapter.file.adapter_file import AdapterFile
    from capaft.adapter.file.header import HeadRecord


def info_command(run: Run, json: Json = False) -> None:
    """Verify an adapter file and describe it."""
    with reporting() as console:
        with activity(console, "loading torch"):
            from capaft.adapter.file.adapter_file import read
            from capaft.training.record.run_directory import find_adapter_file

        path, _ = find_adapter_file(run)
        file = read(path)
        if json:
            print_result(strict_json.document({"path": str(path), "bytes": file.size, "header": file.header.record()}))
            return
        print_result("\n".join(printable(line) for line in describe_file(file)))


def describe_file(file: AdapterFile) -> list[str]:
    """A file's description, as lines for people."""
    header, task, base = file.header, file.task, file.base
    options = task.options if task else {}
    settings = ", ".join(f"{key} {value}" for key, value in sorted(header.method.record().items()) if key != "method")
    return [
        f"{file.path}: {file.size:,} bytes, intact",
        f"method    {header.method.method}{f' ({settings})' if settings else ''}",
        f"base      {base.name}{f' at {base.revision}' if base.revision else ''}",
        f"sites     {header.sites} for {header.targets}" if header.sites else "sites     none",
        *([_head_line(header.head)] if header.head else []),
        f"tensors   {', '.join(sorted(file.tensors))} as {header.save_dtype}",
        f"seed      {header.seed} (seed contract {header.contract})",
        *([f"task      {task.name or 'none'}{_labels(task.labels)}"] if task else []),
        *([f"options   {', '.join(f'{key} {value}' for key, value in options.items())}"] if options else []),
    ]


def _labels(labels: Sequence[str]) -> str:
    """The end of the line about a task, from its labels."""
    return f", {len(labels)} labels: {', '.join(labels[:12])}" if labels else ""


def _head_line(head: HeadRecord) -> str:
    what = f"{head.k:,} coefficients each for" if head.k else "frozen:"
    return f"head      {what} {', '.join(head.parameters)}"
