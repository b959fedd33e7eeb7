"""What methods there are, and what each comes to on a model, as records and as text."""

from __future__ import annotations

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
from capaft.support.errors import printable

WIDTH = 100
INDENT = 11


def method_rows(model: nn.Module | None = None) -> list[dict[str, Any]]:
    """One record a method: what it is, its options, and the stacks that begin with it.

    Of an option, `default` is what it stands at, null where it follows from the others, and `value` what that comes to.
    `narrow` says why masked copies have no meaning for a host and `unmergeable` why it cannot be merged, else null.

    Args:
        model: adds what each stack comes to on it, under `model`; see `count`. Only its shapes are read.
    """
    found = [_host(host) for host in HOSTS.values()]
    defaults = parse_stack(f"{PARAMETERISATION}+{TRANSFORM}").record()
    found.append(
        _row(
            PARAMETERISATION,
            "parameterisation",
            "factors as trained combinations of a seeded random basis; alone it means lora+nola",
            "theta = theta0 + G c",
            "arXiv 2310.02556",
            options=[_option(name, value) for name, value in defaults.items() if name in NOLA_OPTIONS],
        )
    )
    found.append(
        _row(
            TRANSFORM,
            "transform",
            "one factor used under d static random masks; alone it means lora+capaboost",
            "dW = (alpha/r) sum_j (U∘M_Uj)(D∘M_Dj)",
            "arXiv 2407.01320",
            options=[_option(name, value) for name, value in defaults.items() if name in CAPABOOST_OPTIONS],
        )
    )
    found += [_row(name, "alone", summary, stacks=[name]) for name, summary in HOSTLESS.items()]
    if model is not None:
        for row in found:
            row["model"] = {stack: count_stack(model, stack) for stack in row["stacks"]}
    return found


def methods_text(model: nn.Module | None = None) -> str:
    """The records as lines for people."""
    found = method_rows(model)
    lines = ["A stack is host[+nola][+capaboost]; head and full stand alone.", ""]
    for row in found:
        lines += _lines(row)
    if model is not None:
        weights = sum(parameter.numel() for parameter in model.parameters())
        lines += [
            f"On {type(model).__name__} ({weights:,} weights), with these options, a task's head not counted:",
            "",
        ]
        lines += _table([stack for row in found for stack in _counted(row)])
    return "\n".join(lines).rstrip()


def _host(host: type[Host]) -> dict[str, Any]:
    plain = host()
    return _row(
        host.name,
        "host",
        host.summary,
        host.equation,
        host.paper,
        options=[_option(each.name, getattr(plain, each.name), each.default is None) for each in host.options()],
        stacks=stacks_of(host),
        narrow=host.narrow or None,
        unmergeable=host.unmergeable or None,
    )


def _row(name: str, kind: str, summary: str, equation: str = "", paper: str = "", **more: Any) -> dict[str, Any]:
    first = {"name": name, "kind": kind, "summary": summary, "equation": equation, "paper": paper}
    return first | {"options": [], "stacks": [], "narrow": None, "unmergeable": None} | more


def _option(name: str, value: Any, follows: bool = False) -> dict[str, Any]:
    """One option; its choices are those of the command line, where it has the option."""
    kind = typing.get_type_hints(TrainConfig).get(name)
    choices = [word for part in (kind, *get_args(kind)) if get_origin(part) is Literal for word in get_args(part)]
    flag = "--method-option" if kind is None else f"--{name.replace('_', '-')}"
    return {"name": name, "flag": flag, "default": None if follows else value, "value": value, "choices": choices}


def _lines(row: dict[str, Any]) -> Iterator[str]:
    """One method, under its name."""
    yield from _wrapped(row["summary"], row["name"])
    if row["equation"]:
        yield from _wrapped(f"{row['equation']}   ({row['paper']})")
    if row["options"]:
        # What belongs together stays on one line.
        written = ", ".join(_written(each).replace(" ", "\xa0") for each in row["options"])
        yield from _wrapped(written, "", "options: ")
    if row["kind"] == "host":
        yield from _wrapped(", ".join(row["stacks"]), "", "stacks:  ")
        if row["narrow"]:
            yield from _wrapped(f"no capaboost: {row['narrow']}", "", " " * 9)
        yield from _wrapped(f"no: {row['unmergeable']}" if row["unmergeable"] else "yes", "", "merge:   ")
    yield ""


def _written(option: dict[str, Any]) -> str:
    """An option's default as it would be typed."""
    name, flag, value = option["name"], option["flag"], option["value"]
    typed = flag != "--method-option"
    if typed and isinstance(value, bool):
        return flag if value else f"--no-{name.replace('_', '-')}"
    shown = ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value).lower()
    if option["default"] is None and value is not None:
        shown = f"auto ({shown})"
    others = [word for word in option["choices"] if word != value]
    return f"{flag}{' ' if typed else f' {name}='}{shown or 'none'}" + (f" (or {', '.join(others)})" if others else "")


def _counted(row: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """A method's stacks with their counts; once where the model takes none of them for the same reason."""
    counts = list(row["model"].items())
    alike = len({each.get("reason", stack) for stack, each in counts}) == 1
    yield from counts[:1] if alike else counts


def _table(counts: list[tuple[str, dict[str, Any]]]) -> Iterator[str]:
    wide = max(len(stack) for stack, _ in counts)
    yield f"{'stack':<{wide}}  {'sites':>6}  trained numbers"
    for stack, counted in counts:
        if "reason" in counted:
            yield from _wrapped(f"no: {printable(counted['reason'])}", "", f"{stack:<{wide}}  ", 0)
            continue
        low, high = counted["numbers"]
        numbers = f"{low:,}" if low == high else f"between {low:,} and {high:,}"
        yield f"{stack:<{wide}}  {counted['sites']:>6,}  {numbers}"


def _wrapped(words: str, name: str = "", label: str = "", indent: int = INDENT) -> list[str]:
    """Words in lines of at most `WIDTH`, the first after a name in the margin and a label, the others under it."""
    first = f"{name + ' ':<{indent}}{label}" if name else " " * indent + label
    lines = textwrap.wrap(
        words,
        WIDTH,
        initial_indent=first,
        subsequent_indent=" " * len(first),
        break_on_hyphens=False,
        break_long_words=False,
    )
    return [line.replace("\xa0", " ") for line in lines]
