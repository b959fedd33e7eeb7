"""Files in one commit on the Hugging Face hub."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from capaft.exchange.hub_names import (
    LOG_IN,
    HubName,
    explaining_hub_errors,
    refused_permission,
    without_progress_bars,
)
from capaft.support import hub
from capaft.support.errors import TrainingError, UsageError
from capaft.support.paths import shown_path


@dataclass(frozen=True)
class Pushed:
    """Files on the hub.

    Attributes:
        repository: id of the repository.
        url: address of the commit.
        commit: its hash.
        files: names of the files, sorted.
        bytes: all of them together.
    """

    repository: str
    url: str
    commit: str
    files: tuple[str, ...]
    bytes: int


def check_name(text: str, option: str) -> HubName:
    """The repository that a user names.

    Args:
        text: `user/name`, or `user/name@branch`.
        option: the flag or argument, for messages.

    Raises:
        UsageError: it is no such name.
    """
    name = HubName.parse(text)
    if name is None:
        raise UsageError(f"{option} {shown_path(text)} is no name of a repository on the hub; give USER/NAME")
    return name


def check_pushable(text: str, option: str = "--push") -> HubName:
    """The repository that a user names, once it is known that something may be pushed at all.

    Args:
        text: `user/name`, or `user/name@branch`.
        option: the flag or argument, for messages.

    Raises:
        UsageError: it is no such name, the hub cannot be reached, or the user is not logged in.
    """
    name = check_name(text, option)
    from huggingface_hub import get_token, is_offline_mode

    if is_offline_mode():
        raise UsageError(f"{option} {text}: HF_HUB_OFFLINE is set, so that nothing can be pushed; unset it")
    if hub.offline():
        raise UsageError(f"{option} {text}: the hub cannot be reached; push it when there is a network")
    if get_token() is None:
        raise UsageError(f"{option} {text}: you are not logged in to the hub; {LOG_IN}")
    return name


def check_permitted(name: HubName) -> None:
    """Refuse a repository that the user may not write to, before a run is spent on it.

    Nothing is made on the hub. What it does not tell beforehand, as of tokens for chosen repositories, shows at the
    upload, and so does a hub that does not answer.

    Raises:
        UsageError: the hub does not know the token, the token only reads, or the owner is somebody else.
    """
    from huggingface_hub import HfApi

    # A hub of another make may answer something else.
    with suppress(TrainingError, AttributeError, TypeError), explaining_hub_errors(name, "cannot be pushed to"):
        who = HfApi(library_name="capaft").whoami()
        role = who.get("auth", {}).get("accessToken", {}).get("role")
        if role == "read":
            raise UsageError(f"{name} cannot be pushed to: your token only reads; {LOG_IN} with one that writes")
        owners = {str(owner.get("name")).lower() for owner in (who, *who.get("orgs", ()))}
        if role == "write" and name.repository.partition("/")[0].lower() not in owners:
            raise refused_permission(name, "cannot be pushed to")


def push_files(name: HubName, files: Mapping[str, Path], *, message: str, private: bool = False) -> Pushed:
    """Upload files in one commit, after making the repository if there is none.

    Args:
        name: the repository, and the branch if it is not the main one.
        files: the files by their names in the repository; what else it holds stays.
        message: the commit's first line.
        private: make a new repository private; one that is there stays as it is.

    Raises:
        UsageError: the hub refuses it, or a file is a link or no file.
        TrainingError: the hub fails.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    for path in files.values():
        # A stranger may have made the run, and a link leads to anything on this machine.
        if not stat.S_ISREG(path.lstat().st_mode):
            raise UsageError(f"{path} is a link or no file, and is not pushed; put a copy in its place")
    sizes = {file: path.stat().st_size for file, path in files.items()}
    with explaining_hub_errors(name, "cannot be pushed to"), without_progress_bars():
        api = HfApi(library_name="capaft")
        made = api.create_repo(name.repository, private=private or None, exist_ok=True)
        if name.revision:
            api.create_branch(name.repository, branch=name.revision, exist_ok=True)
        commit = api.create_commit(
            made.repo_id,
            [CommitOperationAdd(file, path) for file, path in sorted(files.items())],
            commit_message=message,
            revision=name.revision,
        )
    return Pushed(made.repo_id, str(commit.commit_url), str(commit.oid), tuple(sorted(files)), sum(sizes.values()))
