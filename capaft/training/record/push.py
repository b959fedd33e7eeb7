"""A finished run on the Hugging Face hub: its adapter and what tells others how to use it."""

from __future__ import annotations

from capaft.adapter.file.adapter_file import ADAPTER, read
from capaft.exchange.hub_names import HubName
from capaft.exchange.hub_upload import Pushed, push_files
from capaft.training.record.found_run import find_adapter_file


def push_run(name: str, repository: HubName, *, message: str = "", private: bool = False) -> Pushed:
    """Upload an adapter with its card, its settings and its results, in one commit.

    Checkpoints, predictions, records of steps and names of this machine stay here.

    Args:
        name: a run directory, a directory with one adapter file, or an adapter file.
        repository: where to.
        message: the commit's first line; by default it names the method.
        private: make a new repository private.

    Raises:
        UsageError: there is no such run, or the hub refuses it.
        AdapterFileError: the file is damaged.
        TrainingError: the hub fails.
    """
    path, run = find_adapter_file(name)
    file = read(path)
    files = {ADAPTER: path}
    if run and path == run.adapter:
        files |= {part.name: part for part in run.shared()}
    base = f" for {file.base.hub_id}" if file.base.hub_id else ""
    message = message or f"Upload a {file.header.method.method} adapter{base}"
    return push_files(repository, files, message=message, private=private)
