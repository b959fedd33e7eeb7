"""The ways from a RUN to an adapter file."""

from __future__ import annotations

from pathlib import Path

import pytest

from capaft.exchange.hub_names import HubName
from capaft.support.errors import UsageError
from capaft.training.record import found_run
from capaft.training.record.found_run import find_adapter_file, find_peft
from capaft.training.record.run_directory import RunDirectory


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def finished(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "run.yaml").touch()
    (path / "adapter.safetensors").touch()
    return path


def test_find(tmp_path: Path) -> None:
    old = finished(tmp_path / "runs" / "lora-1")
    assert find_adapter_file(str(old)) == (old / "adapter.safetensors", RunDirectory(old))
    assert find_adapter_file(str(old / "adapter.safetensors"))[1] == RunDirectory(old)
    alone = tmp_path / "alone.safetensors"
    alone.touch()
    assert find_adapter_file(str(alone)) == (alone, None)
    with pytest.raises(UsageError, match="did you mean runs/lora-1"):
        find_adapter_file("runs/lora-2")
    with pytest.raises(UsageError, match="holds no adapter"):
        find_adapter_file(str(tmp_path))


def test_a_directory_with_both_adapters_is_one_of_capaft(tmp_path: Path) -> None:
    (tmp_path / "peft").mkdir()
    (tmp_path / "peft" / "adapter_config.json").touch()
    assert find_peft("peft") == Path("peft")
    with pytest.raises(UsageError, match="make it an adapter file with capaft import peft --output FILE"):
        find_adapter_file("peft")
    (tmp_path / "peft" / "adapter.safetensors").touch()
    assert find_peft("peft") is None
    assert find_adapter_file("peft") == (Path("peft/adapter.safetensors"), None)


def test_what_is_here_comes_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[HubName] = []
    there = finished(tmp_path / "cache" / "snapshot")

    def fetch(name: HubName) -> Path:
        asked.append(name)
        return there

    monkeypatch.setattr(found_run, "fetch_adapter", fetch)
    assert find_adapter_file("user/run@v1")[0] == there / "adapter.safetensors"
    assert set(asked) == {HubName("user/run", "v1")}
    asked.clear()
    finished(tmp_path / "user" / "other")
    for name in ("user/run@v1", "user/run", "./team/run", str(tmp_path / "run"), "run", "a/b/c"):
        with pytest.raises(UsageError, match="there is no run or adapter file"):
            find_adapter_file(name)
    assert not asked
    assert find_adapter_file("user/other")[0] == Path("user/other/adapter.safetensors")
