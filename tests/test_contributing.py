"""The trees of CONTRIBUTING.md and README.md are those of the package, and the worked examples work."""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_job import bert
from transformers import BertForSequenceClassification

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "capaft"
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def tree(page: str) -> list[str]:
    """The paths below capaft/ that a page's tree names, in its order; directories end in a slash."""
    (block,) = re.findall(r"```text\ncapaft/\n(.*?)```", page, re.DOTALL)
    paths, parents = [], [""]
    for line in block.splitlines():
        match = re.fullmatch(r"((?:  )+)(\S+)\s+(\S.*)", line)
        assert match, f"not a name and what it is: {line}"
        depth, name = len(match[1]) // 2, match[2]
        assert depth <= len(parents), f"indented too far: {line}"
        paths.append(parents[depth - 1] + name)
        parents[depth:] = [paths[-1]] if name.endswith("/") else []
    return paths


def files() -> list[str]:
    """The files of the package as the trees name them: a directory stands for its `__init__.py` and its YAML files."""
    names = set()
    for path in PACKAGE.rglob("*"):
        if path.is_dir() or "__pycache__" in path.parts:
            continue
        name = path.relative_to(PACKAGE)
        is_whole_directory = name.parent != Path() and (path.name == "__init__.py" or path.suffix == ".yaml")
        names.add(f"{name.parent.as_posix()}/" if is_whole_directory else name.as_posix())
    return sorted(names)


def test_contributing_names_every_file_and_no_other() -> None:
    assert sorted(tree(CONTRIBUTING)) == files()


def test_the_readme_names_every_package_and_no_other() -> None:
    packages = {f"{path.parent.relative_to(PACKAGE).as_posix()}/" for path in PACKAGE.rglob("*/__init__.py")}
    assert sorted(tree(README)) == sorted(packages)


def test_both_trees_have_the_packages_in_one_order() -> None:
    packages = set(tree(README))
    assert [path for path in tree(CONTRIBUTING) if path in packages] == tree(README)


def patch(text: str, diff: str) -> str:
    """A file after a page's diff: each hunk of lines, apart by blank ones, is found where it stands and replaced."""
    for hunk in diff.strip("\n").split("\n\n"):
        lines = hunk.splitlines()
        before = "".join(f"{line[1:]}\n" for line in lines if line[0] != "+")
        after = "".join(f"{line[1:]}\n" for line in lines if line[0] != "-")
        assert text.count(before) == 1, f"not in the file, or not once:\n{before}"
        text = text.replace(before, after)
    return text


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a copy of the package in which the page's task, format and verb have been added."""
    directory = tmp_path_factory.mktemp("extended")
    package = directory / "capaft"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    task, verb = re.findall(r"```python\n(.*?)```", CONTRIBUTING, re.DOTALL)
    (package / "tasks" / "text_ranking.py").write_text(task, encoding="utf-8")
    (package / "commands" / "tensors.py").write_text(verb, encoding="utf-8")
    diffs = re.findall(r"```diff\n(.*?)```", CONTRIBUTING, re.DOTALL)
    for name, diff in zip(("data/tables.py", "commands/app.py"), diffs, strict=True):
        file = package / name
        file.write_text(patch(file.read_text(encoding="utf-8"), diff), encoding="utf-8")
    return directory


def run(extended: Path, cwd: Path, *command: Any) -> str:
    """What a command of the extended package prints."""
    environ = os.environ | {"PYTHONPATH": str(extended), "HF_HUB_OFFLINE": "1"}
    arguments = [sys.executable, *map(str, command)]
    done = subprocess.run(arguments, cwd=cwd, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_task_the_format_and_the_verb_work(extended: Path, tmp_path: Path) -> None:
    model = bert(tmp_path / "model", BertForSequenceClassification)
    rows = [
        (f"query {q}", f"{'right' if p == q % 4 else 'wrong'} passage", int(p == q % 4))
        for q in range(12)
        for p in range(4)
    ]
    with (tmp_path / "pairs.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("query", "passage", "label"), *rows])
    convert = "import pyarrow.csv, pyarrow.orc as orc; orc.write_table(pyarrow.csv.read_csv('pairs.csv'), 'pairs.orc')"
    run(extended, tmp_path, "-c", convert)
    settings = ("--model", model, "--task", "text-ranking", "--method", "lora", "--epochs", 8, "--output", "run")
    assert "text-ranking" in run(
        extended, tmp_path, "-m", "capaft", "train", "--data", "pairs.orc", *settings, "--json"
    )
    scored = run(extended, tmp_path, "-m", "capaft", "eval", "run", "--json")
    assert '"mrr"' in scored
    listed = run(extended, tmp_path, "-m", "capaft", "tensors", "run")
    assert "head:classifier.weight" in listed
    assert "bytes" in listed
