"""Options of the commands that open an adapter, of which some are pairs and may be repeated."""

from __future__ import annotations

from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from capaft.config.open_options import EvalOptions, OpenOptions
from capaft.config.settings import Settings
from capaft.config.signature import signature
from capaft.config.sources import resolve_settings
from capaft.support.errors import UsageError


def typed(cls: type[Settings], *arguments: str) -> Any:
    """The options that a command gets from its command line."""
    received = []
    app = typer.Typer()

    @app.command()
    @signature(cls)
    def command(**flags: str | bool | list[str] | None) -> None:
        received.append(resolve_settings(cls, flags=flags, environ={})[0])

    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    (options,) = received
    return options


def test_nothing_typed_is_the_defaults() -> None:
    assert typed(OpenOptions) == OpenOptions()
    assert typed(EvalOptions) == EvalOptions()
    assert (EvalOptions().renames, EvalOptions().task_options) == ({}, {})
    assert EvalOptions().columns == {"text": None, "pair": None, "label": None}


def test_repeated_flags_add_up() -> None:
    options = typed(OpenOptions, "--rename", "a=b", "--rename", "c.d=e.f")
    assert options.rename == ("a=b", "c.d=e.f")
    assert options.renames == {"a": "b", "c.d": "e.f"}


def test_a_comma_is_part_of_a_value() -> None:
    options = typed(EvalOptions, "--set", "x=1", "--set", "y=a,b", "--set", "z=p=q")
    assert options.set == ("x=1", "y=a,b", "z=p=q")
    assert options.task_options == {"x": "1", "y": "a,b", "z": "p=q"}


def test_columns_by_role() -> None:
    options = typed(EvalOptions, "--text-column", "story", "--label-column", "none")
    assert options.columns == {"text": "story", "pair": None, "label": "none"}


@pytest.mark.parametrize("flag", ["--model", "--data", "--label-column", "--predictions"])
def test_an_empty_value_is_refused(flag: str) -> None:
    with pytest.raises(UsageError, match=f"^{flag} must be .*, got ''$"):
        typed(EvalOptions, flag, "")


def test_the_flags_of_wrong_pairs_are_named() -> None:
    with pytest.raises(UsageError, match=r"^--rename encoder must be old=new$"):
        _ = OpenOptions(rename=("encoder",)).renames
    with pytest.raises(UsageError, match=r"^--set num_beams must be name=value$"):
        _ = EvalOptions(set=("num_beams",)).task_options
