"""The command that makes settings, and its flags."""

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
    return shlex.join(["capaft", verb, *flag_words(settings, type(settings))])


def flag_words(settings: Settings, cls: type[Settings]) -> list[str]:
    """The flags that set what differs from the default, as the words of a command; permissions are left out.

    Args:
        settings: the settings.
        cls: their class, or a base of it, whose fields alone count.
    """
    words = []
    for field in dataclasses.fields(cls):
        value = getattr(settings, field.name)
        if value != field.default and "permission" not in field.metadata["marks"]:
            words += _words(field, value)
    return words


def _words(field: dataclasses.Field[Any], value: Any) -> list[str]:
    flag = flag_of(field.name)
    if isinstance(value, bool):
        return [flag if value else flag_of(f"no_{field.name}")]
    is_repeated = isinstance(value, tuple) and field.metadata["repeated"]
    values = value if is_repeated else [",".join(map(str, value)) if isinstance(value, tuple) else value]
    texts = ["none" if value is None else str(value) for value in values]
    # What starts with a dash would be read as a flag.
    return [word for text in texts for word in ([f"{flag}={text}"] if text.startswith("-") else [flag, text])]
