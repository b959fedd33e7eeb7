"""`capaft info`: verify an adapter file and describe it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from capaft.commands.reporting import Json, Run, reporting, suggest
from capaft.support import strict_json
from capaft.support.activity import activity
from capaft.support.console import print_result
from capaft.support.counting import counted
from capaft.support.printable import printable

if TYPE_CHECKING:
    from capaft.adapter.file.adapter_file import AdapterFile
    from capaft.adapter.file.header import HeadRecord


def info_command(run: Run, json: Json = False) -> None:
    """Verify an adapter file and describe it."""
    with reporting() as console:
        with activity(console, "loading torch"):
            from capaft.adapter.file.adapter_file import read
            from capaft.training.record.next_commands import eval_command, merge_command
            from capaft.training.record.run_directory import find_adapter_file

        path, directory = find_adapter_file(run)
        file = read(path)
        if json:
            print_result(strict_json.document({"path": str(path), "bytes": file.size, "header": file.header.record()}))
            return
        print_result("\n".join(printable(line) for line in describe_file(file)))
        # A file alone does not name its data.
        merge = merge_command(run, "merged", file.header.method) if file.base.name and file.task else None
        suggest(console, eval_command(run) if directory else merge)


def describe_file(file: AdapterFile) -> list[str]:
    """A file's description, as lines for people."""
    from capaft.methods.stack import settings_text

    header, task, base = file.header, file.task, file.base
    options = settings_text(task.options) if task else ""
    settings = header.method.options_text()
    return [
        f"{file.path}: {counted(file.size, 'byte')}, intact",
        f"method    {header.method.method}{f' ({settings})' if settings else ''}",
        f"base      {base.name}{f' at {base.revision}' if base.revision else ''}",
        f"sites     {header.sites} for {header.targets}" if header.sites else "sites     none",
        *([_head_line(header.head)] if header.head else []),
        f"tensors   {', '.join(sorted(file.tensors))} as {header.save_dtype}",
        f"seed      {header.seed} (seed contract {header.contract})",
        *([f"task      {task.name or 'none'}{_labels(task.labels)}"] if task else []),
        *([f"options   {options}"] if options else []),
    ]


def _labels(labels: Sequence[str]) -> str:
    """The end of the line about a task, from its labels."""
    return f", {counted(len(labels), 'label')}: {', '.join(labels[:12])}" if labels else ""


def _head_line(head: HeadRecord) -> str:
    what = f"{counted(head.k, 'coefficient')} each for" if head.k else "frozen:"
    return f"head      {what} {', '.join(head.parameters)}"
