from __future__ import annotations

from pathlib import Path

import pytest

from capaft import run_directory
from capaft.errors import UsageError


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def finished(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "run.yaml").touch()
    (path / "adapter.safetensors").touch()
    return path


def test_the_next_free_number() -> None:
    assert run_directory.choose(None, "lora+nola", overwrite=False).path == Path("runs/lora+nola-1")
    finished(Path("runs/lora+nola-1"))
    assert run_directory.choose(None, "lora+nola", overwrite=False).path == Path("runs/lora+nola-2")


def test_overwriting_replaces_the_runs_own_files_only(tmp_path: Path) -> None:
    old = finished(tmp_path / "old")
    (old / "notes.txt").write_text("mine")
    chosen = run_directory.choose(str(old), "lora", overwrite=True)
    run_directory.clear(chosen)
    assert [path.name for path in old.iterdir()] == ["notes.txt"]


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file"):
        run_directory.choose(str(tmp_path / "file"), "lora", overwrite=False)


def test_find(tmp_path: Path) -> None:
    old = finished(tmp_path / "runs" / "lora-1")
    assert run_directory.find(str(old)) == (old / "adapter.safetensors", run_directory.RunDirectory(old))
    assert run_directory.find(str(old / "adapter.safetensors"))[1] == run_directory.RunDirectory(old)
    alone = tmp_path / "alone.safetensors"
    alone.touch()
    assert run_directory.find(str(alone)) == (alone, None)
    with pytest.raises(UsageError, match="did you mean runs/lora-1"):
        run_directory.find("runs/lora-2")
    with pytest.raises(UsageError, match="holds no adapter"):
        run_directory.find(str(tmp_path))
