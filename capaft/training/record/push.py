"""A finished run on the Hugging Face hub: its adapter and what tells others how to use it."""

from __future__ import annotations

import os

from capaft.adapter.file.adapter_file import ADAPTER, read
from capaft.exchange.hub_names import HubName
from capaft.exchange.hub_upload import Pushed, check_pushable, push_files
from capaft.training.record.found_run import find_adapter_file


def push(
    run: str | os.PathLike[str], repository: str, *, private: bool = False, commit_message: str | None = None
) -> Pushed:
    """Upload a run to the Hugging Face hub, in one commit: what `capaft push` does.

    The token is that of `hf auth login` or `HF_TOKEN`.

    Args:
        run: a run directory, a directory with one adapter file, or an adapter file.
        repository: `user/name`, or `user/name@branch`; made if there is none.
        private: make a new repository private; one that is there stays as it is.
        commit_message: the commit's first line; by default it names the method.

    Returns:
        The repository, the commit, and the files that are in it.

    Raises:
        UsageError: there is no such run, the hub cannot be reached, you are not logged in, or the hub refuses it.
        AdapterFileError: the file is damaged.
        TrainingError: the hub fails.

    Example:
        >>> run = capaft.train(data="reviews.csv", method="nola", output="runs/reviews")  # doctest: +SKIP
        >>> capaft.push(run.run, "user/reviews", private=True)  # doctest: +SKIP
    """
    name = check_pushable(repository, "repository")
    return push_run(os.fspath(run), name, message=commit_message or "", private=private)


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
