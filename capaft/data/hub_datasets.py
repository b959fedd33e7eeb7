"""A data set on the Hugging Face hub -> its splits.

The clients' own ways of naming what is wanted differ from what users type: `glue/sst2` is a configuration of a
repository whose owner has to be found first.
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

# The branch of a repository in which the hub keeps its data as Parquet files.
_CONVERTED = "refs/convert/parquet"
# So many configurations are named to who forgot one.
_NAMED = 20


def fetch_dataset(spec: str, revision: str | None, hint: str = "") -> dict[str, datasets.Dataset]:
    """The splits of a data set on the hub, or of its copy in the cache.

    Args:
        spec: `a/b` is the repository a/b, or else the configuration b of a.
        revision: a branch, tag or commit of it.
        hint: what else the user may have meant, for an error.

    Raises:
        UsageError: there is no such data set, it cannot be read, or the hub cannot be reached.
    """
    head, _, tail = spec.rpartition("/")
    ways: list[tuple[str, str | None]] = [(spec, None)] if spec.count("/") < 2 else []
    if head:
        ways.append((head, tail))
    offline = hub.offline() or datasets.config.HF_HUB_OFFLINE
    failure = ""
    for repository, configuration in ways:
        try:
            full = _with_owner(repository, offline)
            with without_progress_bars(), _cache_only(offline):
                return dict(_load(full, configuration, revision, offline))
        except (datasets.exceptions.DatasetNotFoundError, RepositoryNotFoundError, ConnectionError) as error:
            failure = failure or one_line(error)
        except Exception as error:  # the hub, the network and the builders raise whatever they like
            raise UsageError(_explain(spec, error)) from error
    if offline:
        raise UsageError(
            f"{spec!r} is not on this machine{hint}, and capaft cannot reach the Hugging Face hub to fetch it; pass a "
            "local file or directory with --data"
        )
    raise UsageError(f"the Hugging Face hub does not give {spec!r} ({failure}); check the id given with --data")


def _with_owner(repository: str, offline: bool) -> str:
    """`glue` -> `nyu-mll/glue`: the hub still knows names without an owner, its newer clients do not."""
    if "/" in repository:
        return repository
    if not offline:
        return str(HfApi().dataset_info(repository).id)
    cached = sorted(Path(HF_HUB_CACHE).glob(f"datasets--*--{repository}"))
    return "/".join(cached[0].name.split("--", 2)[1:]) if cached else repository


def _load(repository: str, configuration: str | None, revision: str | None, offline: bool) -> datasets.DatasetDict:
    """What a repository holds; of a script, which `datasets` no longer runs, what the hub has made of it."""
    # `datasets` would read a local directory of that name; the prefix says that the hub is meant.
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
    """The hub's conversion of a script's data, which lies as `configuration/split/0000.parquet`."""
    wanted = f"{configuration or '*'}/*/*.parquet"
    folder = snapshot_download(
        repository, repo_type="dataset", revision=_CONVERTED, allow_patterns=wanted, local_files_only=offline
    )
    found = sorted({file.parent.parent.name for file in Path(folder).glob(wanted)})
    if len(found) != 1:
        # As `datasets` says it of a repository with several.
        raise ValueError(f"Config name is missing: {found}" if found else f"there is no configuration {configuration}")
    files: dict[str, list[str]] = {}
    for file in sorted(Path(folder, found[0]).glob("*/*.parquet")):
        # Of the largest data sets the hub converts a first part.
        files.setdefault(file.parent.name.removeprefix("partial-"), []).append(str(file))
    return datasets.load_dataset("parquet", data_files=files)


def _explain(spec: str, error: Exception) -> str:
    """One line for what the hub, the network or a builder raised."""
    if isinstance(error, datasets.exceptions.DatasetGenerationError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    listed = re.search(r"Config name is missing.*?\[(.+?)\]", str(error), re.DOTALL)
    if listed is None:
        return f"cannot load {spec!r} from the Hugging Face hub ({one_line(error)})"
    names = re.findall(r"'([^']+)'", listed[1])
    more = ", ..." if names[_NAMED:] else ""
    return (
        f"{spec!r} on the Hugging Face hub holds several data sets; choose --data {spec}/NAME with one of "
        f"{', '.join(names[:_NAMED])}{more}"
    )


@contextmanager
def _cache_only(enabled: bool) -> Iterator[None]:
    """Within, and if `enabled`, `datasets` looks into its cache and does not try the hub again and again."""
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = before or enabled
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before
