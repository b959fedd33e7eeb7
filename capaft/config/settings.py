"""Settings as a frozen dataclass, whose fields know their help, their range and their choices.

`signature.py` makes command-line options of the fields, `sources.py` reads them from every source a user may write to
and writes them as YAML.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar

from capaft.config.values import check_choice

Check = tuple[str, Callable[[Any], bool]]
"""The range of a setting: words that complete the sentence "must be ...", and a test of a value."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Base of the dataclasses of settings."""

    alternatives: ClassVar[tuple[tuple[str, str], ...]] = ()
    """Pairs of settings of which one makes the other void: the one from the stronger source counts."""

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
) -> Any:
    """Make a dataclass field that knows how it is shown and checked.

    Args:
        default: its default.
        help: one sentence.
        panel: the help panel.
        metavar: stands for the value in the help; by default the type's.
        check: its range.
        choices: the words it may be, where its type is not a `Literal` that says so.
        repeated: a flag is given once for each entry of a tuple, instead of once with commas.
        marks: words for other rooms to read, such as "task option" for an option that only some tasks have.
    """
    metadata: dict[str, Any] = {"help": help, "panel": panel, "metavar": metavar, "check": check}
    metadata |= {"choices": tuple(choices), "repeated": repeated, "marks": frozenset(marks)}
    return dataclasses.field(default=default, metadata=metadata)


def check_range(cls: type[Settings], name: str, value: Any, text: str | Sequence[str]) -> None:
    """Make sure that a value is in the range of its setting, if there is a setting of that name and it has one.

    Args:
        cls: the settings.
        name: name of the setting.
        value: the parsed value.
        text: the text that the user wrote.

    Raises:
        ValueError: it is not; the message goes on after the name of the setting.
    """
    metadata = {field.name: field.metadata for field in dataclasses.fields(cls)}.get(name)
    if metadata is None or value is None:
        return
    if metadata["choices"]:
        check_choice(str(value), metadata["choices"], str(value))
    words, holds = metadata["check"] or ("", bool)
    if words and not holds(value):
        raise ValueError(f"must be {words}, got {text.strip() if isinstance(text, str) else ','.join(text)}")


def flag_of(name: str) -> str:
    """The flag of a setting."""
    return "--" + name.replace("_", "-")
