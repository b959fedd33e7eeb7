"""`--help` of every verb: whole names and grouped options, at any width."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest
from typer.testing import CliRunner

from capaft.commands.app import app
from capaft.config.settings import flag_of
from capaft.config.train_config import TrainConfig

VERBS = [
    "train",
    "eval",
    "predict",
    "generate",
    "merge",
    "average",
    "export",
    "import",
    "push",
    "serve",
    "inspect-rank",
    "info",
    "methods",
    "presets",
    "env",
]


def help_text(*verb: str, columns: int = 60) -> str:
    done = CliRunner().invoke(app, [*verb, "--help"], terminal_width=columns, prog_name="capaft")
    assert done.exit_code == 0
    return done.output


@pytest.mark.parametrize("columns", [40, 60, 80, 200])
def test_no_name_of_an_option_is_cut(columns: int) -> None:
    text = help_text("train", columns=columns)
    assert "…" not in text
    assert {flag_of(field.name) for field in fields(TrainConfig)} <= set(re.findall(r"--[a-z0-9-]+", text))
    for panel in ("Options:", "Model and data:", "Task:", "Method:"):
        assert text.splitlines().count(panel) == 1


@pytest.mark.parametrize("verb", [*VERBS, *(f"bank {verb}" for verb in ("add", "list", "verify", "remove"))])
def test_a_narrow_terminal_shows_every_line(verb: str) -> None:
    lines = help_text(*verb.split()).splitlines()
    examples = {line for line in lines if line.startswith("    capaft ")}
    assert examples
    assert all(len(line) <= 60 for line in lines if line not in examples)


def test_the_list_of_verbs_has_whole_sentences() -> None:
    verbs = help_text().partition("Commands:")[2]
    assert "..." not in verbs
    assert [line.split()[0] for line in verbs.splitlines() if re.match(r"  [a-z-]+  ", line)] == [
        *VERBS[: VERBS.index("serve")],
        "bank",
        *VERBS[VERBS.index("serve") :],
    ]
