"""The methods, and the trainable parameters of each on a model, as records and as text."""

from __future__ import annotations

import shutil
import textwrap
import typing
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from torch import nn

from capaft.adapter.budget import count_stack
from capaft.config.train_config import TrainConfig
from capaft.methods.host import Host
from capaft.methods.registry import HOSTS
from capaft.methods.stack import (
    CAPABOOST_OPTIONS,
    HOSTLESS,
    NOLA_OPTIONS,
    PARAMETERISATION,
    TRANSFORM,
    parse_stack,
    stacks_of,
)
from capaft.support.printable import printable

WIDTH = 100
WIDE = 80
INDENT = 11


def method_rows(model: nn.Module | None = None) -> list[dict[str, Any]]:
    """One record per method: its summary, its options, and the stacks that begin with it.

    The `default` of an option is null if it follows from other options; `value` is then the resulting value.
    `narrow` says why a host takes no masked copies, and `unmergeable` why it cannot be merged; null if neither holds.

    Args:
        model: adds the counts of each stack on it, under `model`; see `count_stack`. Only its shapes are read.
    """
    rows = [_host_row(host) for host in HOSTS.values()]
    defaults = parse_stack(f"{PARAMETERISATION}+{TRANSFORM}").record()
    rows.append(
        _row(
            PARAMETERISATION,
            "parameterisation",
            "factors as trained combinations of a seeded random basis; alone it means lora+nola",
            "theta = theta0 + G c",
            "arXiv 2310.02556",
            options=[_option(name, value) for name, value in defaults.items() if name in NOLA_OPTIONS],
        )
    )
    rows.append(
        _row(
            TRANSFORM,
            "transform",
            "one factor used under d static random masks; alone it means lora+capaboost",
            "dW = (alpha/r) sum_j (U∘M_Uj)(D∘M_Dj)",
            "arXiv 2407.01320",
            options=[_option(name, value) for name, value in defaults.items() if name in CAPABOOST_OPTIONS],
        )
    )
    rows += [_row(name, "alone", summary, stacks=[name]) for name, summary in HOSTLESS.items()]
    if model is not None:
        for row in rows:
            row["model"] = {stack: count_stack(model, stack) for stack in row["stacks"]}
    return rows


def methods_text(model: nn.Module | None = None) -> str:
    """The records as lines for people."""
    rows = method_rows(model)
    lines = [*textwrap.wrap("A stack is host[+nola][+capaboost]; head and full stand alone.", _width()), ""]
    for row in rows:
        lines += _method_lines(row)
    if model is not None:
        weights = sum(parameter.numel() for parameter in model.parameters())
        lines += [
            f"On {type(model).__name__} ({weights:,} weights), with these options and without a task's head:",
            "",
        ]
        lines += _count_lines([stack for row in rows for stack in _stack_counts(row)])
    return "\n".join(lines).rstrip()


def _host_row(host: type[Host]) -> dict[str, Any]:
    defaults = host()
    return _row(
        host.name,
        "host",
        host.summary,
        host.equation,
        host.paper,
        options=[
            _option(option.name, getattr(defaults, option.name), is_derived=option.default is None)
            for option in host.options()
        ],
        stacks=stacks_of(host),
        narrow=host.narrow or None,
        unmergeable=host.unmergeable or None,
    )


def _row(name: str, kind: str, summary: str, equation: str = "", paper: str = "", **columns: Any) -> dict[str, Any]:
    row = {"name": name, "kind": kind, "summary": summary, "equation": equation, "paper": paper}
    return row | {"options": [], "stacks": [], "narrow": None, "unmergeable": None} | columns


def _option(name: str, value: Any, *, is_derived: bool = False) -> dict[str, Any]:
    """The record of an option, whose choices are those of the command line; `value` may be derived from others."""
    kind = typing.get_type_hints(TrainConfig).get(name)
    choices = [word for part in (kind, *get_args(kind)) if get_origin(part) is Literal for word in get_args(part)]
    flag = "--method-option" if kind is None else f"--{name.replace('_', '-')}"
    return {"name": name, "flag": flag, "default": None if is_derived else value, "value": value, "choices": choices}


def _method_lines(row: dict[str, Any]) -> Iterator[str]:
    """A method as lines, under its name."""
    yield from _wrapped(row["summary"], row["name"])
    if row["equation"]:
        yield from _wrapped(f"{row['equation']}   ({row['paper']})")
    if row["options"]:
        # An option and its value stay on one line.
        options = ", ".join(_option_text(option).replace(" ", "\xa0") for option in row["options"])
        yield from _wrapped(options, "", "options: ")
    if row["kind"] == "host":
        yield from _wrapped(", ".join(row["stacks"]), "", "stacks:  ")
        if row["narrow"]:
            yield from _wrapped(f"no capaboost: {row['narrow']}", "", " " * 9)
        yield from _wrapped(f"no: {row['unmergeable']}" if row["unmergeable"] else "yes", "", "merge:   ")
    yield ""


def _option_text(option: dict[str, Any]) -> str:
    """An option's default as a user would type it."""
    name, flag, value = option["name"], option["flag"], option["value"]
    has_flag = flag != "--method-option"
    if has_flag and isinstance(value, bool):
        return flag if value else f"--no-{name.replace('_', '-')}"
    shown = ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value).lower()
    if option["default"] is None and value is not None:
        shown = f"auto ({shown})"
    others = [word for word in option["choices"] if word != value]
    return f"{flag}{' ' if has_flag else f' {name}='}{shown or 'none'}" + (
        f" (or {', '.join(others)})" if others else ""
    )


def _stack_counts(row: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """A method's stacks with their counts; only the first if the model refuses all of them for the same reason."""
    counts = list(row["model"].items())
    is_one_reason = len({count.get("reason", stack) for stack, count in counts}) == 1
    yield from counts[:1] if is_one_reason else counts


def _count_lines(counts: list[tuple[str, dict[str, Any]]]) -> Iterator[str]:
    """A table of stacks, their sites and their trainable parameters."""
    width = max(len(stack) for stack, _ in counts)
    yield f"{'stack':<{width}}  {'sites':>6}  trainable parameters"
    for stack, count in counts:
        if "reason" in count:
            yield from _wrapped(f"no: {printable(count['reason'])}", "", f"{stack:<{width}}  ", 0)
            continue
        low, high = count["numbers"]
        parameters = f"{low:,}" if low == high else f"between {low:,} and {high:,}"
        yield f"{stack:<{width}}  {count['sites']:>6,}  {parameters}"


def _width() -> int:
    """Characters of a line: `WIDTH`, or what a narrower terminal shows."""
    return min(WIDTH, shutil.get_terminal_size((WIDTH, 0)).columns)


def _wrapped(words: str, name: str = "", label: str = "", indent: int = INDENT) -> list[str]:
    """Words in lines of at most `WIDTH` characters: the first follows a name and a label, the others align.

    A narrower terminal gets shorter lines.
    """
    first = f"{name + ' ':<{indent}}{label}" if name else " " * indent + label
    # What belongs together stays so where there is room.
    lines = textwrap.wrap(
        words if _width() >= WIDE else words.replace("\xa0", " "),
        _width(),
        initial_indent=first,
        subsequent_indent=" " * len(first),
        break_on_hyphens=False,
        break_long_words=False,
    )
    return [line.replace("\xa0", " ") for line in lines]
