"""Settings as keywords of a call in Python, and messages that name them so."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from typing import Any

from capaft.config.settings import Settings, setting_types
from capaft.config.sources import Flags
from capaft.config.values import required_type
from capaft.support.errors import UsageError, did_you_mean

_FLAG = re.compile(r"(?<![^\s(])--([a-z0-9]+(?:-[a-z0-9]+)*)(?![\w-])")
_RESUME = re.compile(r"capaft train --resume --output (\'[^\']*\'|\S+)")


def keyword_flags(cls: type[Settings], keywords: Mapping[str, Any], others: Collection[str] = ()) -> Flags:
    """The keywords of a call as flags, which are then read as those of the command line are.

    Args:
        cls: the settings.
        keywords: their values by name; None leaves a setting open.
        others: further keywords of the call, to suggest.

    Raises:
        UsageError: there is no such setting, or a value has no text; one line for each mistake.
    """
    kinds = {name: required_type(kind) for name, kind in setting_types(cls).items()}
    errors = []
    flags: dict[str, str | bool | list[str] | None] = {}
    for name, value in keywords.items():
        if name not in kinds:
            hint = did_you_mean(name, [*kinds, *others], "; help(capaft.train) lists the settings")
            errors.append(f"{name} is not a setting{hint}")
            continue
        try:
            flags[name] = _as_flag(value, is_switch=kinds[name] is bool, is_one=kinds[name] in (str, int, float))
        except TypeError:
            errors.append(f"{name} must be a text, a number, a truth value or a list of them, got {value!r:.100}")
    if errors:
        raise UsageError(*errors)
    return flags


def _as_flag(value: Any, *, is_switch: bool, is_one: bool) -> str | bool | list[str] | None:
    """A value as it would be typed.

    Raises:
        TypeError: it has no text.
    """
    if isinstance(value, list | tuple):
        texts = [_text(part) for part in value]
        return ",".join(texts) if is_one else texts
    return value if value is None or (is_switch and isinstance(value, bool)) else _text(value)


def _text(value: Any) -> str:
    if isinstance(value, str | os.PathLike):
        return os.fspath(value)
    # Numbers of numpy and torch have such methods, too.
    if isinstance(value, bool) or not (hasattr(value, "__index__") or hasattr(value, "__float__")):
        raise TypeError
    return repr(int(value)) if hasattr(value, "__index__") else repr(float(value))


def _switches(cls: type[Settings]) -> frozenset[str]:
    return frozenset(name for name, kind in setting_types(cls).items() if required_type(kind) is bool)


def with_keywords_of(cls: type[Settings], message: str) -> str:
    """A message that names settings as keywords of Python instead of flags of the command line.

    Args:
        cls: the settings.
        message: one line.
    """
    if "--" not in message:
        return message
    switches = _switches(cls)

    def keyword(flag: re.Match[str]) -> str:
        name = flag[1].replace("-", "_")
        if name.removeprefix("no_") in switches and name not in switches:
            return f"{name.removeprefix('no_')}=False"
        return f"{name}=True" if name in switches else name

    message = _RESUME.sub(lambda run: f"capaft.train(resume=True, output={run[1].strip(chr(39))!r})", message)
    return _FLAG.sub(keyword, message)
