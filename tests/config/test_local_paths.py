"""Names of models and data that may be shared, and the way back to their paths."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from capaft.config.local_paths import LocalPaths, same_place, shared_name

SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home of Alice, beside that of Bob, with a project in which she works."""
    home = tmp_path / "home" / "alice"
    for directory in ("project/models/bert", "common", "../bob/models"):
        (home / directory).mkdir(parents=True)
    (home / "project" / "x.csv").touch()
    (home / "private.csv").touch()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home / "project")
    return home


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("roberta-base", "roberta-base"),
        ("glue/sst2", "glue/sst2"),
        ("imdb[:5%]", "imdb[:5%]"),
        ("models/bert", "./models/bert"),
        ("./models/../models/bert/", "./models/bert"),
        ("{home}/project/models/bert", "./models/bert"),
        ("~/project/x.csv[:10]", "x.csv[:10]"),
        ("../common", "../common"),
        ("{home}/common", "./common"),
        ("~/private.csv", "private.csv"),
        ("~/private.csv[1:]", "private.csv[1:]"),
        ("../../bob/models", "./models"),
        ("/gone/model", "./model"),
        ("/c/models--bert-base--x/snapshots/" + SHA, "bert-base/x"),
        ("/c/models--gpt2/snapshots/" + SHA + "/", "gpt2"),
    ],
)
def test_a_name_tells_no_home(spec: str, name: str, home: Path) -> None:
    assert shared_name(spec.format(home=home)) == name


def test_a_name_tells_no_home_from_the_root(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for start in (Path("/"), home.parent):
        monkeypatch.chdir(start)
        for spec in (home / "private.csv", (home / "private.csv").relative_to(start)):
            assert shared_name(str(spec)) == "private.csv"


@pytest.mark.parametrize("spec", ["models/bert", "~/common", "../common", "x.csv[:10]", "gpt2"])
def test_a_name_leads_back_from_everywhere(
    spec: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = home / "project" / "runs" / "one"
    paths = LocalPaths().with_only("data", spec)
    run.mkdir(parents=True)
    (run / "local.json").write_text(paths.text(run))
    name = paths.name_of("data", spec)
    before = str(Path(spec).expanduser().absolute())
    monkeypatch.chdir(tmp_path)
    read = LocalPaths.read(run)
    located = read.locate("data", name)
    assert spec == "gpt2" or same_place(located, before)
    # A run that repeats it elsewhere goes by the same name.
    assert read.name_of("data", located) == name
    assert read.locate("model", name) == name


def test_what_lies_where_the_run_began_may_move_with_it(home: Path) -> None:
    run = home / "project" / "runs"
    paths = LocalPaths().with_only("model", "models/bert").with_only("data", "~/private.csv")
    assert json.loads(paths.text(run)) == {
        "model": {"./models/bert": "../models/bert"},
        "data": {"private.csv": str(home / "private.csv")},
    }


def test_what_has_moved_is_looked_up_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = LocalPaths({"data": {"reviews.csv": str(tmp_path / "gone" / "reviews.csv")}})
    assert paths.locate("data", "reviews.csv[:5]") == str(tmp_path / "gone" / "reviews.csv[:5]")
    (tmp_path / "reviews.csv").touch()
    assert paths.locate("data", "reviews.csv[:5]") == "reviews.csv[:5]"
