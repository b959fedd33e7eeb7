"""`--help` of every verb: whole names and grouped options, at any width."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest
from command_line import invoke

from capaft.config.settings import flag_of
from capaft.config.train_config import TrainConfig

VERBS = ["train", "eval", "merge", "inspect-rank", "info", "methods", "presets", "env"]


@pytest.mark.parametrize("columns", ["40", "60", "80", "200"])
def test_no_name_of_an_option_is_cut(columns: str) -> None:
    text = invoke("train", "--help", environ={"COLUMNS": columns}).out
    assert "…" not in text
    assert {flag_of(field.name) for field in fields(TrainConfig)} <= set(re.findall(r"--[a-z0-9-]+", text))
    for panel in ("Options:", "Model and data:", "Task:", "Method:"):
        assert text.splitlines().count(panel) == 1


@pytest.mark.parametrize("verb", VERBS)
def test_a_narrow_terminal_shows_every_line(verb: str) -> None:
    done = invoke(verb, "--help", environ={"COLUMNS": "60"})
    examples = {line for line in done.out.splitlines() if line.startswith("    capaft ")}
    assert done.code == 0
    assert examples
    assert all(len(line) <= 60 for line in done.out.splitlines() if line not in examples)


def test_the_list_of_verbs_has_whole_sentences() -> None:
    done = invoke("--help", environ={"COLUMNS": "60"})
    assert "..." not in done.out
    assert [line.split()[0] for line in done.out.splitlines() if re.match(r"  [a-z-]+  ", line)] == VERBS
