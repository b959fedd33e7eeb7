"""The command that makes settings."""

from __future__ import annotations

import dataclasses
import shlex
from typing import Any

from capaft.config.settings import Settings, flag_of


def command_text(verb: str, settings: Settings) -> str:
    """The command line, as a shell reads it.

    Args:
        verb: the verb of capaft.
        settings: those that its flags set where they differ from the default; a permission is left to the user.
    """
    words = ["capaft", verb]
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if value != field.default and "permission" not in field.metadata["marks"]:
            words += _flags(field, value)
    return shlex.join(words)


def _flags(field: dataclasses.Field[Any], value: Any) -> list[str]:
    flag = flag_of(field.name)
    if isinstance(value, bool):
        return [flag if value else flag_of(f"no_{field.name}")]
    is_repeated = isinstance(value, tuple) and field.metadata["repeated"]
    values = value if is_repeated else [",".join(map(str, value)) if isinstance(value, tuple) else value]
    texts = ["none" if value is None else str(value) for value in values]
    # What starts with a dash would be read as a flag.
    return [word for text in texts for word in ([f"{flag}={text}"] if text.startswith("-") else [flag, text])]
