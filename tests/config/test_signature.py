"""Settings as options of a command: its help, its values, its completion."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pytest
import typer
from tiny_settings import Oven
from typer.testing import CliRunner

from capaft.config.signature import signature
from capaft.config.sources import resolve_settings
from capaft.support.errors import UsageError


def bake_app() -> typer.Typer:
    app = typer.Typer()

    @app.command()
    @signature(Oven)
    def bake(
        config: Annotated[Path | None, typer.Option("--config", help="Settings to start from.")] = None,
        **flags: str | bool | None,
    ) -> None:
        """Bake."""
        try:
            oven, sources = resolve_settings(Oven, flags=flags, environ={}, file=config)
        except UsageError as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(error.exit_code) from None
        typer.echo(f"{oven}\n{sources}")

    return app


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERMINAL_WIDTH", "200")
    return CliRunner()


def row(output: str, flag: str) -> str:
    return next(line for line in output.splitlines() if flag in line.split())


def test_help(runner: CliRunner) -> None:
    result = runner.invoke(bake_app(), ["--help"])
    assert result.exit_code == 0
    for panel in ("Options", "Food", "Machine"):
        assert f"─ {panel} ─" in result.output
    assert result.output.index("--config") < result.output.index("--dish") < result.output.index("--heat")
    for flag, metavar, default in [
        ("--dish", "<dish>", "bread"),
        ("--sizes", "<int,...>", "20, 30"),
        ("--heat", "<number>", "180.0"),
        ("--mode", "<fan|grill>", "fan"),
        ("--light", "<bool>", "no-light"),
    ]:
        assert metavar in row(result.output, flag)
        assert f"[default: {default}]" in row(result.output, flag)
    for flag, metavar in [("--note", "<text>"), ("--seeds", "<count>"), ("--recipe", "<path>")]:
        assert metavar in row(result.output, flag)
        assert "[default" not in row(result.output, flag)
    assert "--no-timer" in row(result.output, "--timer")


def test_a_command_gets_text_and_only_what_was_typed(runner: CliRunner, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("minutes: 5\nlight: true")
    config = ["--config", str(tmp_path / "run.yaml")]
    result = runner.invoke(bake_app(), [*config, "--no-light", "--heat", "1e2", "--sizes", "1,2"])
    assert result.exit_code == 0
    assert str(Oven(minutes=5, heat=100.0, sizes=(1, 2))) in result.output
    assert "'light': '--no-light'" in result.output
    assert "'dish': 'default'" in result.output


def test_mistakes_on_the_command_line(runner: CliRunner) -> None:
    unknown = runner.invoke(bake_app(), ["--haet", "3"])
    assert unknown.exit_code == 2
    assert "--heat" in unknown.output
    several = runner.invoke(bake_app(), ["--heat", "0", "--minutes", "x"])
    assert several.exit_code == 2
    assert several.stderr.splitlines() == [
        "--heat must be in (0, 300], got 0",
        "--minutes must be a whole number, got 'x'",
    ]


def test_completion_offers_the_choices(runner: CliRunner) -> None:
    environ = {"_BAKE_COMPLETE": "complete_bash", "COMP_WORDS": "bake --mode g", "COMP_CWORD": "2"}
    result = runner.invoke(bake_app(), prog_name="bake", env=environ)
    assert result.output.split() == ["grill"]
