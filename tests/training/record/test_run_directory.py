from __future__ import annotations

from pathlib import Path

import pytest

from capaft.support.errors import UsageError
from capaft.training.record import run_directory
from capaft.training.record.run_directory import (
    RunDirectory,
    choose_directory,
    clear_run,
    hold_directory,
    remove_leftovers,
    replacing_run,
)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def finished(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "run.yaml").touch()
    (path / "adapter.safetensors").touch()
    return path


def test_the_next_free_number() -> None:
    assert choose_directory(None, "lora+nola", overwrite=False).path == Path("runs/lora+nola-1")
    finished(Path("runs/lora+nola-1"))
    assert choose_directory(None, "lora+nola", overwrite=False).path == Path("runs/lora+nola-2")


def test_overwriting_replaces_the_runs_own_files_only(tmp_path: Path) -> None:
    old = finished(tmp_path / "old")
    (old / "notes.txt").write_text("mine")
    (old / ".adapter.safetensors.x1y2").touch()
    for directory in ("checkpoints/step-000000001", "trackers/capaft"):
        (old / directory).mkdir(parents=True)
    chosen = choose_directory(str(old), "lora", overwrite=True)
    clear_run(chosen)
    assert [path.name for path in old.iterdir()] == ["notes.txt"]


def test_one_run_at_a_time(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "new" / "run")
    with hold_directory(run):
        (run.path / "run.yaml").touch()
        with (
            pytest.raises(UsageError, match="another process is training here"),
            hold_directory(run),
        ):
            pass
    # The first holder has ended, and the files stay.
    with hold_directory(run):
        assert run.config.exists()
    assert run.config.exists()


def test_a_directory_that_nothing_is_written_to_goes(tmp_path: Path) -> None:
    with hold_directory(RunDirectory(tmp_path / "runs" / "one")):
        assert (tmp_path / "runs" / "one").is_dir()
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(UsageError, match=r"--output .*file/run cannot be written: Not a directory"),
        hold_directory(RunDirectory(tmp_path / "file" / "run")),
    ):
        pass


def test_a_run_that_is_there_is_told_how_to_go_on(tmp_path: Path) -> None:
    old = finished(tmp_path / "old")
    with pytest.raises(UsageError, match="--resume, or replace it with --overwrite"):
        choose_directory(str(old), "lora", overwrite=False)
    assert choose_directory(str(old), "lora", overwrite=False, resume=True).path == old


def test_what_a_killed_run_was_writing_is_nothing_of_somebody_elses(tmp_path: Path) -> None:
    new = tmp_path / "new"
    new.mkdir()
    (new / ".run.yaml.x1y2").touch()
    chosen = choose_directory(str(new), "lora", overwrite=False, resume=True)
    assert chosen == choose_directory(str(new), "lora", overwrite=False)
    (new / ".bashrc").touch()
    with pytest.raises(UsageError, match=r"holds something else \(.bashrc, ...\)"):
        choose_directory(str(new), "lora", overwrite=True)


def test_sweeping_leaves_all_that_is_whole(tmp_path: Path) -> None:
    run = RunDirectory(finished(tmp_path / "run"))
    whole = [*run.files(), run.path / ".notes", run.checkpoints / "step-000000004" / "state.json"]
    for file in whole:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    half = run.checkpoints / ".step-000000008" / ".state.json.x1y2"
    for file in (half, run.path / ".metrics.jsonl.x1y2"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    remove_leftovers(run)
    assert {path for path in run.path.rglob("*") if path.is_file()} == set(whole)
    assert not half.parent.exists()


def test_a_run_that_is_being_replaced_is_never_taken_for_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDirectory(tmp_path / "run")
    for file in (*run.files(), run.checkpoints / "step-000000004" / "state.json"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    real, states = Path.unlink, []

    def unlink(path: Path, missing_ok: bool = False) -> None:
        real(path, missing_ok)
        states.append((run.config.exists(), run.results.exists(), run.checkpoints.exists()))

    monkeypatch.setattr(Path, "unlink", unlink)
    clear_run(run)
    assert states[0] == (True, False, True)
    assert states[-1] == (False, False, False)
    assert all(configuration for configuration, _, checkpoints in states if checkpoints)


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file"):
        choose_directory(str(tmp_path / "file"), "lora", overwrite=False)


def replaced(path: Path) -> RunDirectory:
    """A whole run whose files all say that they are the old ones, and a file of the user's."""
    run = RunDirectory(path)
    for file in (*run.files(), run.checkpoints / "step-000000004" / "state.json", run.trackers / "log"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("old")
    (path / "notes.txt").write_text("mine")
    return run


def contents(path: Path) -> dict[str, str]:
    return {str(file.relative_to(path)): file.read_text() for file in path.rglob("*") if file.is_file()}


def test_a_run_is_replaced_by_one_that_ends(tmp_path: Path) -> None:
    run, messages = replaced(tmp_path / "run"), []
    with replacing_run(run, messages.append):
        assert contents(run.path).keys() >= {"notes.txt"}
        assert not run.has_trained
        assert not run.config.exists()
        run.config.write_text("new")
        run.adapter.write_text("new")
    assert contents(run.path) == {"notes.txt": "mine", "run.yaml": "new", "adapter.safetensors": "new"}
    assert messages == []


def fail(run: RunDirectory, messages: list[str], *written: str, error: BaseException | None = None) -> None:
    """A new run that writes some files and fails."""
    with replacing_run(run, messages.append):
        assert not any(file.exists() for file in run.files())
        for name in written:
            (run.path / name).parent.mkdir(parents=True, exist_ok=True)
            (run.path / name).write_text("new")
        raise error or UsageError("broken")


@pytest.mark.parametrize("error", [UsageError("broken"), KeyboardInterrupt()])
def test_a_run_is_put_back_if_the_new_one_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    run, messages = replaced(tmp_path / "run"), []
    before = contents(run.path)
    with pytest.raises(type(error)):
        fail(run, messages, "run.yaml", "metrics.jsonl", error=error)
    assert contents(run.path) == before
    assert messages == [f"the earlier run in {run.path} has been put back"]


@pytest.mark.parametrize("left", ["adapter.safetensors", "checkpoints/step-000000001/state.json"])
def test_what_a_failed_run_has_left_stays(tmp_path: Path, left: str) -> None:
    run, messages = replaced(tmp_path / "run"), []
    with pytest.raises(UsageError):
        fail(run, messages, left)
    assert contents(run.path) == {"notes.txt": "mine", left: "new"}
    assert messages == []


def killed(run: RunDirectory, *written: str) -> None:
    """A new run that is killed: its context is never left."""
    context = replacing_run(run, print)
    context.__enter__()
    for name in written:
        (run.path / name).write_text("killed")
    KILLED.append(context)  # Collected as garbage, it would be left after all.


KILLED: list[object] = []


def test_the_run_before_one_that_was_killed_early_is_put_back(tmp_path: Path) -> None:
    run, messages = replaced(tmp_path / "run"), []
    before = contents(run.path)
    killed(run, "run.yaml")
    assert choose_directory(str(run.path), "lora", overwrite=True) == run
    with pytest.raises(UsageError):
        fail(run, messages, "run.yaml")
    assert contents(run.path) == before


def test_the_run_before_one_that_was_killed_late_goes_when_that_goes_on(tmp_path: Path) -> None:
    run = replaced(tmp_path / "run")
    killed(run, "adapter.safetensors")
    remove_leftovers(run)
    assert contents(run.path) == {"notes.txt": "mine", "adapter.safetensors": "killed"}


def test_a_new_run_that_fails_leaves_its_records(tmp_path: Path) -> None:
    run, messages = RunDirectory(tmp_path / "run"), []
    run.path.mkdir()
    with pytest.raises(UsageError):
        fail(run, messages, "metrics.jsonl")
    assert contents(run.path) == {"metrics.jsonl": "new"}
    assert messages == []


def test_a_run_that_cannot_be_put_back_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, messages = replaced(tmp_path / "run"), []
    before = contents(run.path)

    def stuck(self: Path, target: Path) -> Path:
        raise PermissionError(13, "Permission denied")

    real = clear_run
    monkeypatch.setattr(run_directory, "clear_run", lambda run: (real(run), monkeypatch.setattr(Path, "rename", stuck)))
    with pytest.raises(PermissionError):
        fail(run, messages, "run.yaml")
    monkeypatch.undo()
    assert contents(run.replaced) | {"notes.txt": "mine"} == before
    # The next attempt that fails brings it back.
    with pytest.raises(UsageError):
        fail(run, messages, "run.yaml")
    assert contents(run.path) == before
