from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from tiny_job import fork, killing_at, wait

from capaft.support import files
from capaft.support.errors import TrainingError


def test_it_replaces_the_whole_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "new" / "file.bin"
    files.write_atomically(file, b"old")
    files.write_atomically(file, "new")
    assert file.read_bytes() == b"new"
    assert [path.name for path in file.parent.iterdir()] == ["file.bin"]


def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    files.write_atomically(tmp_path / "a", b"")
    (tmp_path / "b").touch()
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_is_told_and_the_old_content_stays(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    files.write_atomically(file, b"old")

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(files.os, step, full)
    with pytest.raises(TrainingError, match="No space left"):
        files.write_atomically(file, b"new")
    assert file.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_killed_at_any_moment_the_file_is_the_old_one_or_the_new(tmp_path: Path) -> None:
    file = tmp_path / "file"
    seen, code, moment = set(), -1, 0
    while code != 0:
        files.write_atomically(file, b"old")

        def killed(last: int = moment) -> None:
            killing_at(last, tmp_path)
            files.write_atomically(file, b"new")

        code = wait(fork(killed))
        assert code in (0, -signal.SIGKILL)
        seen.add(file.read_bytes())
        moment += 1
    assert seen == {b"old", b"new"}
    assert moment > 2


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match=r"cannot write .*: (Not a directory|File exists)"):
        files.write_atomically(tmp_path / "file" / "new", b"")


def test_a_pipe_is_written_to_and_stays(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    files.write_atomically(pipe, b"content")
    assert os.read(reader, 100) == b"content"
    os.close(reader)
    assert pipe.is_fifo()


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / "link").symlink_to("theirs")
    files.write_atomically(tmp_path / "link", "ours")
    assert (tmp_path / "theirs").read_text() == "theirs"
    assert (tmp_path / "link").read_text() == "ours"
    assert not (tmp_path / "link").is_symlink()


def test_names_may_be_as_long_as_the_system_allows(tmp_path: Path) -> None:
    files.write_atomically(tmp_path / ("x" * 250), "")
    with pytest.raises(TrainingError, match="File name too long"):
        files.write_atomically(tmp_path / ("x" * 300), "")
    with pytest.raises(TrainingError, match="null"):
        files.write_atomically(tmp_path / "a\0b", "")


def test_half_of_a_surrogate_pair_is_written_as_json_spells_it(tmp_path: Path) -> None:
    files.write_atomically(tmp_path / "file", '{"text": "\ud800"}')
    assert (tmp_path / "file").read_text() == '{"text": "\\ud800"}'


def ignore(part: Path) -> None:
    pass


def test_a_growing_file_has_its_name_when_it_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "new" / "file.txt"
    with files.growing_file(file, ignore) as write:
        write("one\n")
        assert not file.exists()
        write("two \ud800\n")
    assert file.read_text() == "one\ntwo \\ud800\n"
    (tmp_path / "other").touch()
    assert file.stat().st_mode == (tmp_path / "other").stat().st_mode
    assert os.listdir(file.parent) == ["file.txt"]


def test_what_there_is_of_a_growing_file_is_kept_beside_it(tmp_path: Path) -> None:
    file, parts = tmp_path / "file.txt", list[Path]()
    file.write_text("before")

    def break_off(*pieces: str) -> None:
        with files.growing_file(file, parts.append) as write:
            for piece in pieces:
                write(piece)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        break_off()
    assert (os.listdir(tmp_path), parts) == (["file.txt"], [])
    with pytest.raises(KeyboardInterrupt):
        break_off("one\n")
    assert parts == [tmp_path / "file.txt.part"]
    assert parts[0].read_text() == "one\n"
    assert file.read_text() == "before"
    assert len(os.listdir(tmp_path)) == 2


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_growing_file_that_cannot_be_written_is_told(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, step, fail)
    message = "cannot write .*file.txt: No space left on device; any file there is unchanged"
    with pytest.raises(TrainingError, match=message), files.growing_file(tmp_path / "file.txt", ignore) as write:
        write("one\n")
    assert not (tmp_path / "file.txt").exists()


def test_a_pipe_grows_as_it_is(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with files.growing_file(pipe, ignore) as write:
        write("one\n")
        assert os.read(reader, 100) == b"one\n"
    os.close(reader)
    assert os.listdir(tmp_path) == ["pipe"]
