"""An adapter on the Hugging Face hub: the few files that it consists of, in the hub's cache on this machine."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from capaft.adapter.file.adapter_file import ADAPTER
from capaft.config.local_paths import CONFIG
from capaft.exchange.hub_names import HubName, explaining_hub_errors, without_progress_bars
from capaft.exchange.peft_config import CONFIG as PEFT_CONFIG
from capaft.exchange.peft_config import MAX_CONFIG_BYTES
from capaft.exchange.peft_directory import PICKLED, WEIGHTS
from capaft.support import hub
from capaft.support.errors import UsageError

MAX_ADAPTER_BYTES = 16 * 2**30
"""Bytes of an adapter's tensors; a file of `--method full` is as large as its model."""

# What a RUN is read from, with the most bytes of each.
_OF_CAPAFT = {ADAPTER: MAX_ADAPTER_BYTES, CONFIG: MAX_CONFIG_BYTES}
_OF_PEFT = {WEIGHTS: MAX_ADAPTER_BYTES, PEFT_CONFIG: MAX_CONFIG_BYTES}


@lru_cache(maxsize=16)
def fetch_adapter(name: HubName) -> Path | None:
    """The directory of an adapter in the hub's cache; what is not there yet is downloaded, and nothing else.

    None if the hub cannot be reached, and the cache does not have it.

    Raises:
        UsageError: there is no such repository or revision, it holds no adapter, or a file of unusual size.
        TrainingError: the download fails.
    """
    if hub.offline():
        return _cached(name)
    from huggingface_hub import HfApi

    with explaining_hub_errors(name, "cannot be read from the hub"):
        siblings = HfApi(library_name="capaft").model_info(name.repository, revision=name.revision).siblings or []
        present = {sibling.rfilename for sibling in siblings}
        files = _files(name, present)
        _check_sizes(name, files)
        return _downloaded(name, list(files))


def _files(name: HubName, present: set[str]) -> dict[str, int]:
    """The files to download, with their limits.

    Raises:
        UsageError: the repository holds no adapter that can be read.
    """
    wanted = _OF_CAPAFT if ADAPTER in present else _OF_PEFT if {WEIGHTS, PEFT_CONFIG} <= present else {}
    if not wanted and PICKLED in present:
        raise UsageError(
            f"{name} holds {PICKLED} and no {WEIGHTS}: it is pickled, and unpickling runs whatever code is in it"
        )
    if not wanted:
        raise UsageError(f"{name} holds no adapter: neither {ADAPTER} nor {WEIGHTS} with {PEFT_CONFIG}")
    return {file: limit for file, limit in wanted.items() if file in present}


def _check_sizes(name: HubName, files: dict[str, int]) -> None:
    """Refuse files beyond their limits before they are downloaded.

    Raises:
        UsageError: one is larger, or its size is not told.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    for file, limit in files.items():
        size = get_hf_file_metadata(hf_hub_url(name.repository, file, revision=name.revision)).size
        if size is None or size > limit:
            told = "of unknown size" if size is None else f"of {size:,} bytes"
            raise UsageError(f"{name} has a {file} {told}, and at most {limit:,} are downloaded")


def _downloaded(name: HubName, files: list[str], *, cached: bool = False) -> Path:
    """The directory that files lie in once they are here.

    Raises:
        UsageError: they are of two commits.
    """
    from huggingface_hub import hf_hub_download

    with without_progress_bars():
        paths = [
            Path(hf_hub_download(name.repository, file, revision=name.revision, local_files_only=cached))
            for file in files
        ]
    if len({path.parent for path in paths}) > 1:
        raise UsageError(f"{name} was changed while it was downloaded; try again")
    return paths[0].parent


def _cached(name: HubName) -> Path | None:
    """The directory of an adapter that is in the cache, or None."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    for files in (_OF_CAPAFT, _OF_PEFT):
        first, other = files
        try:
            directory = _downloaded(name, [first], cached=True)
        except (LocalEntryNotFoundError, ValueError, OSError):
            continue
        if files is _OF_CAPAFT or (directory / other).is_file():
            return directory
    return None
