"""Settings as a frozen dataclass whose fields carry their help, range and choices.

`signature.py` turns the fields into command-line options; `sources.py` reads them from flags, variables and files, and
writes them as YAML.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar, Literal

Check = tuple[str, Callable[[Any], bool]]
"""The range of a setting: words that complete the sentence "must be ...", and a test of a value."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Base class of settings."""

    alternatives: ClassVar[tuple[tuple[str, str], ...]] = ()
    """Pairs of settings that exclude each other: the one from the stronger source counts."""
    nullable: ClassVar[bool] = True
    """True if "none" and nothing at all stand for None, so that one source can take back what another set."""

    def conflicts(self, labels: Mapping[str, str]) -> list[str]:
        """Contradictions between settings, one line each.

        Args:
            labels: by name of each setting that the user set, how the user named it: `--lr` or `run.yaml:3: lr`.
        """
        return []


def setting(
    default: Any,
    help: str,
    panel: str,
    *,
    metavar: str = "",
    check: Check | None = None,
    choices: Sequence[str] = (),
    repeated: bool = False,
    marks: Collection[str] = (),
    complete: Callable[[str], list[Any]] | None = None,
) -> Any:
    """Make a dataclass field that carries its help and its checks.

    Args:
        default: its default.
        help: one sentence.
        panel: the help panel.
        metavar: placeholder of the value in the help; by default the type's.
        check: its range.
        choices: the words to choose from, where its type is not a `Literal` of them.
        repeated: True if the flag is repeated for each entry of a tuple, instead of being given once with commas.
        complete: the words, perhaps with descriptions, that complete the beginning of a value in a shell; by default
            the choices.
        marks: tags for other modules, such as "task option" for an option that only some tasks have.
    """
    metadata: dict[str, Any] = {"help": help, "panel": panel, "metavar": metavar, "check": check}
    metadata |= {"choices": tuple(choices), "repeated": repeated, "marks": frozenset(marks), "complete": complete}
    return dataclasses.field(default=default, metadata=metadata)


def check_range(cls: type[Settings], name: str, value: Any, text: str | Sequence[str]) -> None:
    """Make sure that a value is in the range of its setting, if a setting of that name has one.

    Args:
        cls: the settings.
        name: name of the setting.
        value: the parsed value.
        text: the text that the user wrote.

    Raises:
        ValueError: it is not; the message continues the name of the setting.
    """
    metadata = {field.name: field.metadata for field in dataclasses.fields(cls)}.get(name)
    if metadata is None or value is None:
        return
    words, holds = metadata["check"] or ("", bool)
    if words and not holds(value):
        raise ValueError(f"must be {words}, got {text.strip() if isinstance(text, str) else ','.join(text)}")


def setting_types(cls: type[Settings]) -> dict[str, Any]:
    """The type of each setting, by name: a `Literal` of its choices if it has any."""
    hints = typing.get_type_hints(cls, include_extras=True)
    types = {field.name: hints[field.name] for field in dataclasses.fields(cls)}
    choices = {field.name: field.metadata["choices"] for field in dataclasses.fields(cls)}
    return {name: Literal.__getitem__(choices[name]) if choices[name] else kind for name, kind in types.items()}


def flag_of(name: str) -> str:
    """The flag of a setting."""
    return "--" + name.replace("_", "-")
