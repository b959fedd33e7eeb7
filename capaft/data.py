"""Anything a user calls a data set -> a `datasets.DatasetDict` with a train and a validation split.

A source is a file, a directory, or an id on the Hugging Face hub. Each becomes named splits; one rule then
says which is the validation split, and cuts one off the training rows where there is none. What is on disk
wins over the hub.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
import numpy as np
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from capaft import hub, rng
from capaft.errors import UsageError
from capaft.readers import SUFFIXES, one_line, read

logger = logging.getLogger(__name__)

TRAIN = "train"
VALIDATION = "validation"
# The first of these that a source has is its validation split.
VALIDATION_NAMES = (VALIDATION, "validation_matched", "valid", "val", "dev", "test")

_FILE_ROLE = re.compile(r"train|valid|val(?![a-z])|dev|test")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+){0,2}")


def load(
    spec: str, *, validation_split: float = 0.1, seed: int = 0, revision: str | None = None
) -> datasets.DatasetDict:
    """Load a data set with exactly the splits "train" and "validation".

    Args:
        spec: a file, a directory (of split files, with one file, or from `save_to_disk`), or a hub id such as
            `imdb`, `glue/sst2`, `user/name` or `user/name/config`.
        validation_split: share of the training rows that becomes the validation split if the source has none.
        seed: decides which rows these are.
        revision: branch, tag or commit of a data set on the hub.

    Raises:
        UsageError: there is no such source, it cannot be read, or no two splits can be had from it.
    """
    splits = _open(spec, revision)
    train = splits.get(TRAIN)
    if train is None:
        raise UsageError(f"{spec}: there is no train split among {_listed(splits)}")
    name = _validation_name(splits)
    if name is None:
        train, validation = _cut(spec, train, validation_split, seed)
        logger.info("validation: %d of %d rows of train", len(validation), len(train) + len(validation))
    else:
        validation = splits[name]
        _check_alike(spec, train, validation, name)
        logger.info("validation: the %d rows of %s", len(validation), name)
    return datasets.DatasetDict({TRAIN: train, VALIDATION: validation})


def sample(rows: datasets.Dataset, count: int, seed: int) -> datasets.Dataset:
    """A seeded sample of `count` rows, in their original order."""
    chosen = rng.permutation(rng.fold_in(seed, "", "data", "sample"), len(rows))[:count]
    return rows.select(np.sort(chosen))


def load_evaluation(spec: str, *, revision: str | None = None) -> datasets.Dataset:
    """Load the rows to score a model on: the validation split if the source has one, else all its rows.

    Args:
        spec: as in :func:`load`.
        revision: as in :func:`load`.

    Raises:
        UsageError: there is no such source, it cannot be read, or it has several splits and none to take.
    """
    splits = _open(spec, revision)
    name = _validation_name(splits) or (TRAIN if TRAIN in splits else None)
    if name is None and len(splits) != 1:
        raise UsageError(f"{spec}: there is no validation or train split among {_listed(splits)}")
    return splits[name or next(iter(splits))]


def _open(spec: str, revision: str | None) -> dict[str, datasets.Dataset]:
    """The splits of a source under their own names; one file alone is "train"."""
    path = Path(os.path.expanduser(spec))
    if spec and os.path.exists(path):
        try:
            return _read_directory(path) if path.is_dir() else {TRAIN: read(path)}
        except OSError as error:
            raise UsageError(f"{spec}: cannot read this ({one_line(error)})") from error
    if spec.startswith((".", "/", "~")) or path.suffix.lower() in SUFFIXES or not _HUB_ID.fullmatch(spec):
        raise UsageError(f"{spec!r}: no such file or directory{_similar(path)}; give an existing one with --data")
    return _fetch(spec, revision)


def _similar(path: Path) -> str:
    """A hint at what stands in the same directory under a similar name, or nothing."""
    try:
        neighbours = os.listdir(path.parent)
    except OSError:
        return ""
    close = difflib.get_close_matches(path.name, neighbours, n=1, cutoff=0.75)
    return f" (did you mean {path.parent / close[0]}?)" if close else ""


def _read_directory(path: Path) -> dict[str, datasets.Dataset]:
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return _read_saved(path)
    visible = sorted(p for p in path.iterdir() if not p.name.startswith("."))
    files = [p for p in visible if p.suffix.lower() in SUFFIXES and p.is_file()]
    roles: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        match = _FILE_ROLE.match(file.name.lower())
        if match and "mismatched" not in file.name.lower():
            roles["validation" if match[0].startswith("val") else match[0]].append(file)
    if not roles and len(files) == 1:
        return {TRAIN: read(files[0])}
    if not roles:
        there = ", ".join(p.name for p in visible[:8]) or "nothing"
        raise UsageError(
            f"{path}: neither files named train, validation or test nor exactly one data file "
            f"({' '.join(SUFFIXES)}) in this directory; it holds {there}"
        )
    splits = {TRAIN: _read_shards(TRAIN, roles[TRAIN], ())} if TRAIN in roles else {}
    chosen = next((name for name in VALIDATION_NAMES if name in roles), None)
    if chosen is not None:
        splits[chosen] = _read_shards(chosen, roles[chosen], _text_columns(splits.get(TRAIN)))
    return splits


def _read_shards(role: str, files: list[Path], text_columns: tuple[str, ...]) -> datasets.Dataset:
    """The files of one split, which may differ in their numbers only (`train-00000-of-00002.parquet`)."""
    if len({re.sub(r"\d+", "#", file.name) for file in files}) > 1:
        names = ", ".join(file.name for file in files)
        raise UsageError(f"{files[0].parent}: several files could be the {role} split: {names}; keep one of them")
    first = read(files[0], text_columns)
    rest = [read(file, _text_columns(first)) for file in files[1:]]
    for file, shard in zip(files[1:], rest, strict=True):
        if shard.features != first.features:
            raise UsageError(f"{file}: its columns or their types are not those of {files[0].name}")
    return datasets.concatenate_datasets([first, *rest]) if rest else first


def _text_columns(dataset: datasets.Dataset | None) -> tuple[str, ...]:
    features = {} if dataset is None else dataset.features
    return tuple(name for name, feature in features.items() if feature == datasets.Value("string"))


def _read_saved(path: Path) -> dict[str, datasets.Dataset]:
    try:
        with _without_progress_bars():
            saved = datasets.load_from_disk(str(path))
    except Exception as error:  # a damaged directory surfaces as any of a dozen types
        raise UsageError(f"{path}: cannot read what save_to_disk wrote here ({one_line(error)})") from error
    return dict(saved) if isinstance(saved, datasets.DatasetDict) else {TRAIN: saved}


def _fetch(spec: str, revision: str | None) -> dict[str, datasets.Dataset]:
    """The splits of a hub data set: `a/b` is the repository a/b, or else configuration b of a."""
    head, _, tail = spec.rpartition("/")
    ways: list[tuple[str, str | None]] = [(spec, None)] if spec.count("/") < 2 else []
    if head:
        ways.append((head, tail))
    offline = hub.offline() or datasets.config.HF_HUB_OFFLINE
    failure = ""
    for repository, configuration in ways:
        # `datasets` would read a local directory of that name; the prefix says that the hub is meant.
        name = f"hf://datasets/{repository}" if os.path.isdir(repository) else repository
        try:
            with _without_progress_bars(), _cache_only(offline):
                return dict(datasets.load_dataset(name, configuration, revision=revision))
        except (datasets.exceptions.DatasetNotFoundError, ConnectionError) as error:
            failure = failure or one_line(error)
        except Exception as error:  # the hub, the network and the builders raise whatever they like
            raise UsageError(f"cannot load {spec!r} from the Hugging Face hub ({one_line(error)})") from error
    if offline:
        raise UsageError(
            f"{spec!r} is not on this machine{_similar(Path(spec))}, and capaft cannot reach the Hugging "
            "Face hub to fetch it; pass a local file or directory with --data"
        )
    raise UsageError(f"the Hugging Face hub does not give {spec!r} ({failure}); check the id given with --data")


@contextmanager
def _cache_only(enabled: bool) -> Iterator[None]:
    """Within, and if `enabled`, `datasets` looks into its cache and does not try the hub again and again."""
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = before or enabled
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    before = datasets.are_progress_bars_disabled(), are_progress_bars_disabled()
    datasets.disable_progress_bars()
    disable_progress_bars()
    try:
        yield
    finally:
        if not before[0]:
            datasets.enable_progress_bars()
        if not before[1]:
            enable_progress_bars()


def _validation_name(splits: dict[str, datasets.Dataset]) -> str | None:
    name = next((name for name in VALIDATION_NAMES if name in splits), None)
    if name == "test" and _unlabelled(splits[name], splits.get(TRAIN)):
        logger.info("the test split has no labels and is left aside")
        return None
    return name


def _unlabelled(test: datasets.Dataset, train: datasets.Dataset | None) -> bool:
    """Whether labels were withheld, as competitions do: -1 in every row, or a column fewer than in train."""
    if train is not None and set(test.column_names) < set(train.column_names):
        return True
    features = test.features.items()
    integers = [name for name, feature in features if str(getattr(feature, "dtype", "")).startswith("int")]
    return any(test.unique(name) == [-1] for name in integers)


def _cut(spec: str, rows: datasets.Dataset, share: float, seed: int) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Training and validation rows, both in their old order."""
    if not 0 < share < 1:
        raise UsageError(f"--validation-split must lie between 0 and 1, got {share}")
    if len(rows) < 2:
        raise UsageError(f"{spec}: {len(rows)} row(s) cannot be split into train and validation; add rows")
    size = min(max(round(share * len(rows)), 1), len(rows) - 1)
    shuffled = rng.permutation(rng.fold_in(seed, "", "data", VALIDATION), len(rows))
    return rows.select(np.sort(shuffled[size:])), rows.select(np.sort(shuffled[:size]))


def _check_alike(spec: str, train: datasets.Dataset, validation: datasets.Dataset, name: str) -> None:
    if 0 in (len(train), len(validation)):
        raise UsageError(f"{spec}: there are no rows in the split {name if len(train) else TRAIN}")
    if set(train.column_names) != set(validation.column_names):
        raise UsageError(
            f"{spec}: the columns differ: train has {', '.join(train.column_names)}; "
            f"{name} has {', '.join(validation.column_names)}"
        )


def _listed(splits: dict[str, datasets.Dataset]) -> str:
    return ", ".join(splits)
