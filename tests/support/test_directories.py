"""Directories that are there whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from capaft.support import directories
from capaft.support.directories import check_directory, written_whole
from capaft.support.errors import TrainingError, UsageError


def test_a_directory_takes_the_place_of_another_at_once(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.mkdir()
    (path / "old").write_text("old")
    with written_whole("out", path) as aside:
        (aside / "new").write_text("new")
        assert [entry.name for entry in path.iterdir()] == ["old"]
    assert [entry.name for entry in path.iterdir()] == ["new"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_what_fails_leaves_what_was_there(error: type[BaseException], tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.mkdir()
    (path / "old").write_text("old")

    def write() -> None:
        with written_whole("out", path) as aside:
            (aside / "new").write_text("new")
            raise error

    with pytest.raises(error):
        write()
    assert [entry.name for entry in tmp_path.rglob("*")] == ["out", "old"]


def test_a_directory_that_cannot_be_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out"
    path.mkdir()
    (path / "old").write_text("old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(directories, "replace_directory", fail)
    with pytest.raises(TrainingError, match="cannot write out: No space left on device"), written_whole("out", path):
        pass
    assert [entry.name for entry in tmp_path.rglob("*")] == ["out", "old"]


def test_a_link_to_a_directory_stays(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    for name, target in (("link", "real"), ("early", "not-yet")):
        (tmp_path / name).symlink_to(target)
        with written_whole(name, tmp_path / name) as aside:
            (aside / "new").write_text("new")
        assert (tmp_path / name).is_symlink()
        assert (tmp_path / target / "new").read_text() == "new"
    assert {entry.name for entry in tmp_path.iterdir()} == {"real", "link", "early", "not-yet"}


def test_a_directory_that_cannot_be_replaced_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    monkeypatch.chdir(inner)
    for output in (".", "..", str(inner)):
        with pytest.raises(UsageError, match="is the directory that you are in; name one below it"):
            check_directory(output, Path(output), "mark", "a thing")
    check_directory("out", Path("out"), "mark", "a thing")
    monkeypatch.setattr(Path, "is_mount", lambda path: path.name == "disk")
    (inner / "disk").mkdir()
    with pytest.raises(UsageError, match="is where a disk is mounted; name a directory below it"):
        check_directory("disk", Path("disk"), "mark", "a thing")


def test_what_may_be_written_to(tmp_path: Path) -> None:
    path = tmp_path / "out"
    check_directory("out", path, "mark", "a thing")
    path.mkdir()
    check_directory("out", path, "mark", "a thing")
    (path / "other").write_text("")
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="holds something else"):
            check_directory("out", path, "mark", "a thing", overwrite=overwrite)
    (path / "mark").write_text("")
    with pytest.raises(UsageError, match="holds a thing; name another directory, or replace it with --overwrite"):
        check_directory("out", path, "mark", "a thing")
    check_directory("out", path, "mark", "a thing", overwrite=True)
    with pytest.raises(UsageError, match="is a file"):
        check_directory("out", path / "mark", "mark", "a thing")
