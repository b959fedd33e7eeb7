"""What a RUN means: a run directory, an adapter file, the directory of a PEFT adapter, or a repository on the hub."""

from __future__ import annotations

from pathlib import Path

from capaft.adapter.file.adapter_file import ADAPTER, find_adapter
from capaft.exchange.hub_download import fetch_adapter
from capaft.exchange.hub_names import HubName
from capaft.exchange.peft_config import CONFIG as PEFT_CONFIG
from capaft.support import hub
from capaft.support.errors import UsageError, did_you_mean
from capaft.support.paths import named_path, shown_path
from capaft.training.record.run_directory import LAST, RUNS, RunDirectory


def find_peft(name: str) -> Path | None:
    """The directory of a PEFT adapter that RUN means, if it means one: it has no adapter file of capaft's.

    Raises:
        UsageError: nothing can have this name.
    """
    path = run_path(name)
    return path if (path / PEFT_CONFIG).is_file() and not (path / ADAPTER).is_file() else None


def run_path(name: str) -> Path:
    """The path that RUN means: the name itself, or what the hub has under it.

    Args:
        name: a path, or `user/name[@revision]` of the hub if there is nothing of that name here.

    Raises:
        UsageError: nothing can have this name, or the hub has no such adapter.
        TrainingError: the download fails.
    """
    path = named_path("RUN", name)
    on_hub = name_on_hub(name)
    return (fetch_adapter(on_hub) if on_hub else None) or path


def name_on_hub(name: str) -> HubName | None:
    """The repository that a name means, if it can be no path: with its first directory here, it is misspelt."""
    return None if Path(name.partition("/")[0]).exists() else HubName.parse(name)


def find_adapter_file(name: str) -> tuple[Path, RunDirectory | None]:
    """The adapter file that RUN means, and its run directory if it has one.

    Args:
        name: a run directory, a directory with one adapter file, an adapter file, or `user/name[@revision]` of the hub.

    Raises:
        UsageError: it is none of these.
        TrainingError: a download fails.
    """
    path = run_path(name)
    run = RunDirectory(path)
    if run.config.is_file() and not run.adapter.exists():
        raise UsageError(f"{name} holds no {ADAPTER}; give the directory of a finished run, or an adapter file")
    if find_peft(name):
        raise UsageError(f"{name} is a PEFT adapter; make it an adapter file with capaft import {name} --output FILE")
    path = find_adapter(path)
    if path.is_file():
        run = RunDirectory(path.parent)
        return path, run if path.name in (ADAPTER, LAST) and run.config.is_file() else None
    runs = [str(file.parent) for file in sorted(RUNS.glob(f"*/{ADAPTER}"))]
    hint = did_you_mean(str(path), runs)
    if not hint and name_on_hub(name) and hub.offline():
        hint = ", and the hub, which may have it, cannot be reached; give a run directory or an adapter file"
    raise UsageError(
        f"there is no run or adapter file {shown_path(name)}{hint or '; give a run directory or an adapter file'}"
    )
