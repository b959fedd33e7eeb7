"""Every command and every Python block of README and docs runs as written."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import invoke, write_reviews

from capaft.model.demo import demo_model

ROOT = Path(__file__).parent.parent
PAGES = (
    "README.md",
    "docs/api.md",
    "docs/cli.md",
    "docs/methods.md",
    "docs/adapter-format.md",
    "docs/tasks.md",
    "docs/training.md",
    "docs/using.md",
    "docs/merging.md",
    "docs/exchange.md",
    "docs/bank.md",
    "docs/serving.md",
    "docs/presets.md",
)


def blocks(language: str) -> list[tuple[str, str]]:
    """The pages with their code blocks in a language."""
    pairs = []
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        pairs += [(page, block) for block in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)]
    return pairs


def commands(page: str) -> list[list[str]]:
    """Arguments of each `capaft` command on a page."""
    lines = [line for source, block in blocks("sh") if source == page for line in block.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("capaft ")]


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)])
def test_commands(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in order, so that a page's `eval` finds the run of its `train`; training is cut short."""
    monkeypatch.chdir(tmp_path)
    short = {"CAPAFT_EPOCHS": "1", "CAPAFT_MAX_TRAIN_EXAMPLES": "24", "CAPAFT_MAX_EVAL_EXAMPLES": "24"}
    for name in ("reviews.csv", "other.csv"):
        write_reviews(tmp_path / name)
    (tmp_path / "dir").symlink_to(demo_model())
    for arguments in commands(page):
        if "roberta-base" in arguments:
            # Tests cannot reach the hub, but the settings must still be valid.
            arguments = [*arguments, "--print-config"]
        # A run goes on with its own settings.
        environ = short if arguments[0] == "train" and "--resume" not in arguments else {}
        if "--processes" in arguments:
            # Such a run starts copies of itself from the command line.
            command = [sys.executable, "-m", "capaft", *arguments]
            subprocess.run(command, env=os.environ | environ, check=True, capture_output=True)
            continue
        done = invoke(*arguments, environ=environ or None)
        assert done.code == 0, f"{page}: capaft {' '.join(arguments)}\n{done.err}"
        for adapter in tmp_path.glob("runs/reviews/adapter.safetensors"):
            shutil.copy(adapter, tmp_path)


def test_the_pages_show_every_verb() -> None:
    assert {arguments[0] for page in PAGES for arguments in commands(page)} >= {
        "train",
        "eval",
        "merge",
        "inspect-rank",
    }


@pytest.mark.parametrize(("page", "block"), blocks("python"))
def test_python_blocks(page: str, block: str, tmp_path: Path) -> None:
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, f"{page}\n{done.stderr}"


def test_the_two_commands_install_what_the_project_declares() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "pip install -c constraints.txt -e '.[demo]' && capaft train" in text
    assert "pip install -c constraints.txt -e '.[test]' && pytest" in text
    assert "pip install -q -c constraints.txt -e '.[test]' && pytest" in (ROOT / ".ci" / "run").read_text()
