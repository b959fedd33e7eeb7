"""Fetch the splits of a data set on the Hugging Face hub.

Users type shorter names than the hub's clients take: `glue/sst2` is a configuration of a repository whose owner has
to be looked up first.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

from capaft.data.quiet import without_progress_bars
from capaft.support import hub
from capaft.support.errors import UsageError, one_line
from capaft.support.out_of_memory import report_exhaustion

# The branch in which the hub keeps the data of a repository as Parquet files.
_CONVERTED = "refs/convert/parquet"
# The most configurations that an error lists.
_MOST_LISTED = 20


def fetch_dataset(spec: str, revision: str | None, hint: str = "") -> dict[str, datasets.Dataset]:
    """Load the splits of a data set on the hub, or of its copy in the cache.

    Args:
        spec: the id; `a/b` is the repository a/b, or else the configuration b of a.
        revision: branch, tag or commit of the repository.
        hint: a suggestion to put into the error.

    Raises:
        UsageError: there is no such data set, it cannot be read, or the hub cannot be reached.
    """
    head, _, tail = spec.rpartition("/")
    candidates: list[tuple[str, str | None]] = [(spec, None)] if spec.count("/") < 2 else []
    if head:
        candidates.append((head, tail))
    offline = hub.offline() or datasets.config.HF_HUB_OFFLINE
    failure = ""
    for repository, configuration in candidates:
        try:
            full = _with_owner(repository, offline)
            with without_progress_bars(), _cache_only(offline):
                return dict(_load(full, configuration, revision, offline))
        except (datasets.exceptions.DatasetNotFoundError, RepositoryNotFoundError, ConnectionError) as error:
            failure = failure or one_line(error)
        except Exception as error:  # the hub, the network and the builders raise many types
            report_exhaustion(error, f"reading {spec!r}")
            raise UsageError(_explain(spec, error)) from error
    if offline:
        raise UsageError(
            f"{spec!r} is not on this machine{hint}, and capaft cannot reach the Hugging Face hub to fetch it; pass a "
            "local file or directory with --data"
        )
    raise UsageError(f"cannot get {spec!r} from the Hugging Face hub ({failure}); check the id given with --data")


def _with_owner(repository: str, offline: bool) -> str:
    """Complete `glue` to `nyu-mll/glue`: the hub still knows names without an owner, its newer clients do not."""
    if "/" in repository:
        return repository
    if not offline:
        return str(HfApi().dataset_info(repository).id)
    cached = sorted(Path(HF_HUB_CACHE).glob(f"datasets--*--{repository}"))
    return "/".join(cached[0].name.split("--", 2)[1:]) if cached else repository


def _load(repository: str, configuration: str | None, revision: str | None, offline: bool) -> datasets.DatasetDict:
    """Load a repository; for a loading script, which `datasets` no longer runs, the hub's conversion of its data."""
    # Without the prefix, `datasets` would read a local directory of that name.
    name = f"hf://datasets/{repository}" if os.path.isdir(repository) else repository
    try:
        return datasets.load_dataset(name, configuration, revision=revision)
    except (RuntimeError, ConnectionError) as error:
        is_script = "scripts are no longer supported" in str(error)
        if revision or not (is_script or offline):
            raise
        try:
            return _converted(repository, configuration, offline)
        except LocalEntryNotFoundError:
            raise error from None


def _converted(repository: str, configuration: str | None, offline: bool) -> datasets.DatasetDict:
    """Load the hub's conversion of a script's data, stored as `configuration/split/0000.parquet`."""
    pattern = f"{configuration or '*'}/*/*.parquet"
    folder = snapshot_download(
        repository, repo_type="dataset", revision=_CONVERTED, allow_patterns=pattern, local_files_only=offline
    )
    names = sorted({file.parent.parent.name for file in Path(folder).glob(pattern)})
    if len(names) != 1:
        # The words of `datasets`, which `_explain` looks for.
        raise ValueError(f"Config name is missing: {names}" if names else f"no configuration is called {configuration}")
    files: dict[str, list[str]] = {}
    for file in sorted(Path(folder, names[0]).glob("*/*.parquet")):
        # The hub converts only a first part of the largest data sets.
        files.setdefault(file.parent.name.removeprefix("partial-"), []).append(str(file))
    return datasets.load_dataset("parquet", data_files=files)


def _explain(spec: str, error: Exception) -> str:
    """Describe in one line an error of the hub, the network or a builder."""
    if isinstance(error, datasets.exceptions.DatasetGenerationError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    listed = re.search(r"Config name is missing.*?\[(.+?)\]", str(error), re.DOTALL)
    if listed is None:
        return f"cannot load {spec!r} from the Hugging Face hub ({one_line(error)})"
    names = re.findall(r"'([^']+)'", listed[1])
    more = ", ..." if names[_MOST_LISTED:] else ""
    return (
        f"{spec!r} on the Hugging Face hub holds several data sets; choose --data {spec}/NAME with one of "
        f"{', '.join(names[:_MOST_LISTED])}{more}"
    )


@contextmanager
def _cache_only(enabled: bool) -> Iterator[None]:
    """Keep `datasets` to its cache if `enabled`, so that it does not try the hub again and again."""
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = before or enabled
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before
