"""Settings as the options of a Typer command."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Annotated, Any, Literal, get_args, get_origin

from capaft.config.settings import Settings, flag_of, setting_types
from capaft.config.values import metavar, required_type

LONGEST_PLACEHOLDER = 32
"""Characters of a placeholder at most, so that a narrow terminal can show it in one piece."""


def signature(cls: type[Settings]) -> Callable[[Any], Any]:
    """Decorate a Typer command: options for the fields replace its `**flags`, after its own options.

    Values stay text, so that `resolve_settings` can report every mistake at once; only booleans are switches.
    """
    import typer

    kinds = {name: required_type(kind) for name, kind in setting_types(cls).items()}

    def parameter(field: dataclasses.Field[Any]) -> inspect.Parameter:
        kind, option, metadata = kinds[field.name], flag_of(field.name), field.metadata
        is_switch = kind is bool
        choices = get_args(kind) if get_origin(kind) is Literal else ()
        words = "|".join(choices)
        # Long choices are listed in the help, where lines can be broken.
        is_long = len(words) > LONGEST_PLACEHOLDER
        shown = metadata["metavar"] or ("name" if is_long else words) or metavar(kind)
        help = f"{metadata['help']} One of: {', '.join(choices)}." if is_long else metadata["help"]
        info = typer.Option(
            f"{option}/{flag_of(f'no_{field.name}')}" if is_switch else option,
            help=help,
            rich_help_panel=metadata["panel"],
            metavar=None if is_switch else f"<{shown}>",
            # A switch's own default is no news where the help says where the value comes from.
            show_default="(default:" not in help,
            autocompletion=metadata["complete"] or ((lambda: list(choices)) if choices else None),
        )
        default = None if field.default is None else _Unset(field.default)
        hint: Any = bool | None if is_switch else list[str] | None if metadata["repeated"] else str | None
        return inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[hint, info]
        )

    def decorate(command: Any) -> Any:
        parameters = inspect.signature(command, eval_str=True).parameters.values()
        named = [p for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD]
        command.__signature__ = inspect.Signature([*named, *map(parameter, dataclasses.fields(cls))])
        return command

    return decorate


@dataclasses.dataclass(frozen=True)
class _Unset:
    """A default that `--help` shows but that reaches the command as None, since the user did not type it.

    Typer calls a callable default for its value, and shows its `str`, or for a switch its truth.
    """

    default: Any

    def __call__(self) -> None:
        return None

    def __str__(self) -> str:
        return ", ".join(map(str, self.default)) if isinstance(self.default, tuple) else str(self.default)

    def __bool__(self) -> bool:
        return bool(self.default)
