"""The command that makes settings."""

from __future__ import annotations

import dataclasses
import shlex
from typing import Any

from capaft.config.settings import Settings, flag_of


def command_text(verb: str, settings: Settings) -> str:
    """The command line, cut at its flags into lines of a readable length.

    Args:
        verb: the verb of capaft.
        settings: those that its flags set where they differ from the default; a permission is left to the user.
    """
    lines = [f"capaft {verb}"]
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if value == field.default or "permission" in field.metadata["marks"]:
            continue
        for flag in _flags(field, value):
            if len(lines[-1]) + len(flag) < 110:
                lines[-1] += f" {flag}"
            else:
                lines.append(f"  {flag}")
    return " \\\n".join(lines)


def _flags(field: dataclasses.Field[Any], value: Any) -> list[str]:
    flag = flag_of(field.name)
    if isinstance(value, bool):
        return [flag if value else flag_of(f"no_{field.name}")]
    is_repeated = isinstance(value, tuple) and field.metadata["repeated"]
    texts = value if is_repeated else [",".join(map(str, value)) if isinstance(value, tuple) else value]
    return [_argument(flag, "none" if value is None else str(text)) for text in texts]


def _argument(flag: str, text: str) -> str:
    return shlex.quote(f"{flag}={text}") if text.startswith("-") else f"{flag} {shlex.quote(text)}"
