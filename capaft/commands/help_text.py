"""The text of `--help`: plain and grouped, so that no name is cut off however narrow the terminal is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from typer.core import TyperCommand, TyperGroup

WIDTH = 100
"""Characters of a line at most; text in longer lines is hard to read."""


class Verb(TyperCommand):
    """A verb whose options are listed under the headings of their panels."""

    def format_help(self, *args: Any) -> None:
        """Write the help without drawing."""
        # Panels drawn as tables cut off the names of options, and are slow to draw.
        self.rich_markup_mode = None
        super().format_help(*args)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options under the headings of their panels."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if (record := parameter.get_help_record(ctx)) is not None:
                is_argument = parameter.param_type_name == "argument"
                if is_argument:  # everything on a command line is text, so its type says nothing
                    record = (record[0].partition(" <")[0], record[1])
                panel = "Arguments" if is_argument else getattr(parameter, "rich_help_panel", None) or "Options"
                panels.setdefault(panel, []).append(record)
        for panel, records in panels.items():
            with formatter.section(panel):
                formatter.write_dl(records)


class VerbGroup(TyperGroup):
    """Verbs under one name, listed in plain text."""

    def format_help(self, *args: Any) -> None:
        """Write the help without drawing."""
        # Drawing panels takes as long as the rest of `--help`.
        self.rich_markup_mode = None
        super().format_help(*args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the list of verbs."""
        write_verbs(formatter, {name: self.get_command(ctx, name) for name in self.list_commands(ctx)})


def examples_text(commands: Sequence[str]) -> str:
    """The end of a verb's help: commands to paste, each whole on its line."""
    # click wraps no lines of a paragraph that begins with this character.
    return "\n".join(
        ["\b", "Examples:" if len(commands) > 1 else "Example:", *(f"  {command}" for command in commands)]
    )


def write_verbs(formatter: Any, verbs: Mapping[str, Any]) -> None:
    """Write the list of verbs, each with the whole first sentence of its help."""
    with formatter.section("Commands"):
        formatter.write_dl([(name, f"{verb.help.split('.')[0]}.") for name, verb in verbs.items()])
