"""`capaft info`: verify an adapter file and describe it."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from capaft.commands.reporting import Json, Run, reporting, suggest
from capaft.support import strict_json
from capaft.support.activity import activity
from capaft.support.console import print_result
from capaft.support.counting import counted
from capaft.support.printable import printable

if TYPE_CHECKING:
    from capaft.adapter.file.adapter_file import AdapterFile
    from capaft.adapter.file.header import HeadRecord
    from capaft.adapter.file.site_list import SiteList
    from capaft.adapter.file.sizes import TensorSize
    from capaft.exchange.peft_directory import PeftDirectory

# Of the sites, and of the tensors, for people; `--json` has all of them.
MOST_LINES = 12


def info_command(run: Run, json: Json = False) -> None:
    """Verify an adapter file and describe it."""
    with reporting() as console:
        with activity(console, "loading torch"):
            from capaft.adapter.file.adapter_file import read
            from capaft.exchange.peft_directory import read_peft
            from capaft.training.record.found_run import find_adapter_file, find_peft
            from capaft.training.record.next_commands import command_to_merge, command_to_score

        if peft_directory := find_peft(run):
            _show_peft(read_peft(peft_directory), json=json)
            suggest(console, f"capaft import {run} --output adapter.safetensors")
            return
        path, directory = find_adapter_file(run)
        file = read(path)
        if json:
            print_result(strict_json.document(_record(file)))
            return
        print_result("\n".join(printable(line) for line in describe_file(file)))
        # A file alone does not name its data.
        merge = command_to_merge(run, "merged", file.header.method) if file.base.name and file.task else None
        suggest(console, command_to_score(run) if directory else merge)


def describe_file(file: AdapterFile) -> list[str]:
    """A file's description, as lines for people."""
    from capaft.adapter.file.sizes import header_sizes, tensor_sizes
    from capaft.methods.stack import settings_text

    header, task, base, tensors = file.header, file.task, file.base, tensor_sizes(file)
    total = {"tensors": sum(size.bytes for size in tensors.values())} | header_sizes(file)
    parameters = sum(size.parameters for size in tensors.values())
    options = settings_text(task.options) if task else ""
    settings = header.method.options_text()
    return [
        f"{file.path}: {counted(file.size, 'byte')}, intact",
        f"method    {header.method.method}{f' ({settings})' if settings else ''}",
        f"base      {base.name or 'unnamed'}{f' at {base.revision}' if base.revision else ''}",
        f"sites     {len(header.sites)} for {header.targets}" if len(header.sites) else "sites     none",
        *_at_most(_site_lines(header.sites)),
        *([_head_line(header.head)] if header.head else []),
        f"tensors   {len(tensors)}, {parameters:,} parameters as {header.save_dtype}",
        *_at_most(_tensor_lines(tensors)),
        f"bytes     {', '.join(f'{count:,} {name}' for name, count in _descending(total))}",
        f"seed      {header.seed} (seed contract {header.contract})",
        *([f"task      {task.name or 'none'}{_labels(task.labels)}"] if task else []),
        *([f"options   {options}"] if options else []),
        *([f"ext       {', '.join(header.ext)}"] if header.ext else []),
    ]


def _show_peft(peft: PeftDirectory, *, json: bool) -> None:
    """Describe a PEFT adapter on stdout, whose files do not say enough to verify it without its base model."""
    tensors = [tensor for pair in peft.pairs for tensor in pair.parts.values()]
    tensors += [*peft.tokens.values(), *peft.parameters.values()]
    config, parameters = peft.config, sum(prod(tensor.shape) for tensor in tensors)
    record = {
        "path": str(peft.path),
        "bytes": peft.size,
        "format": "peft",
        "method": "dora" if config.dora else "lora",
        "rank": config.rank,
        "alpha": config.alpha,
        "rslora": config.rslora,
        "base": config.base,
        "revision": config.revision,
        "task_type": config.task_type,
        "layers": [pair.module for pair in peft.pairs],
        "copies": sorted({*peft.parameters, *peft.tokens}),
        "parameters": parameters,
    }
    if json:
        print_result(strict_json.document(record))
        return
    patterns = " and patterns" if config.rank_pattern or config.alpha_pattern else ""
    lines = [
        f"{peft.path}: a PEFT adapter, {counted(peft.size, 'byte')}",
        f"method    {record['method']} (rank {config.rank}, alpha {config.alpha:g}{patterns})",
        f"base      {config.base or 'unnamed'}{f' at {config.revision}' if config.revision else ''}",
        f"layers    {len(peft.pairs)}",
        *_at_most([f"          {pair.module}" for pair in peft.pairs]),
        f"tensors   {len(tensors)}, {parameters:,} parameters",
        *_at_most([f"          {name}, a copy" for name in sorted({*peft.parameters, *peft.tokens})]),
        f"task      {config.task_type or 'none named'}",
    ]
    print_result("\n".join(map(printable, lines)))


def _record(file: AdapterFile) -> dict[str, Any]:
    """A file's description as JSON values."""
    from capaft.adapter.file.sizes import header_sizes, tensor_sizes

    return {
        "path": str(file.path),
        "bytes": file.size,
        "tensors": {name: size._asdict() for name, size in tensor_sizes(file).items()},
        "header_bytes": header_sizes(file),
        "header": file.header.record(),
        "sites": list(file.header.sites),
    }


def _site_lines(sites: SiteList) -> list[str]:
    return [f"          {group.template or 'the model itself'}: {group.shape}" for group in sites.groups]


def _tensor_lines(tensors: dict[str, TensorSize]) -> list[str]:
    wide = max(map(len, tensors), default=0)
    lines = []
    for name, size in tensors.items():
        what = f"{size.parameters:,} parameters" if size.parameters else "scales"
        lines.append(f"          {name:<{wide}}  {what}, {size.dtype}, {size.bytes:,} bytes")
    return lines


def _descending(sizes: dict[str, int]) -> list[tuple[str, int]]:
    """What has a size, the largest first."""
    return sorted(((name, size) for name, size in sizes.items() if size), key=lambda part: -part[1])


def _at_most(lines: list[str]) -> list[str]:
    """The first lines, and the number of the others."""
    others = len(lines) - MOST_LINES
    return [*lines[:MOST_LINES], f"          and {others} more, which --json lists"] if others > 1 else lines


def _labels(labels: Sequence[str]) -> str:
    """The end of the line about a task, from its labels."""
    return f", {counted(len(labels), 'label')}: {', '.join(labels[:12])}" if labels else ""


def _head_line(head: HeadRecord) -> str:
    what = f"{counted(head.k, 'coefficient')} each for" if head.k else "frozen:"
    return f"head      {what} {', '.join(head.parameters)}"
