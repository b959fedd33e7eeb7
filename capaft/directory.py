"""A directory -> its splits: what `save_to_disk` wrote, idx files, files of rows, or classes of media."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from capaft import idx, media_folder
from capaft.errors import UsageError
from capaft.readers import SUFFIXES, TEXT, one_line, read
from capaft.split_names import TRAIN, role, validation_name


def read_directory(path: Path) -> dict[str, datasets.Dataset]:
    """The splits of a directory under their own names: train and the one that validates, as far as they are there.

    Raises:
        UsageError: there is nothing to read, or more than can be told apart, or it is damaged.
        OSError: the directory cannot be listed.
    """
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return _read_saved(path)
    visible = sorted(p for p in path.iterdir() if not p.name.startswith("."))
    if any(map(idx.is_idx, visible)):
        return idx.read_directory(path)
    files = [p for p in visible if p.suffix.lower() in SUFFIXES and p.is_file()]
    # Beside other data, a text file is a note or a list.
    tables = [p for p in files if p.suffix.lower() != TEXT]
    texts = [p for p in files if p.suffix.lower() == TEXT]
    if roles := _roles(tables):
        return _read_roles(roles)
    tree = _scan(path, forgiving=len(tables) == 1 or bool(_roles(texts)))
    classes = {name for split in tree.values() for name in split}
    if len(tables) == 1 and len(classes) > 1:
        raise UsageError(
            f"{path}: both {tables[0].name} and the directories {', '.join(sorted(classes)[:4])} could be the data; "
            f"give {tables[0]} with --data, or move it away"
        )
    if len(tables) == 1:
        return {TRAIN: read(tables[0])}
    if tree:
        return media_folder.read(path, tree)
    if roles := _roles(texts):
        return _read_roles(roles)
    if len(files) == 1:
        return {TRAIN: read(files[0])}
    there = ", ".join(p.name for p in visible[:8]) or "nothing"
    raise UsageError(
        f"{path}: neither files named train, validation or test nor exactly one data file "
        f"({' '.join(SUFFIXES)}) nor classes of images or recordings in this directory; it holds {there}"
    )


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Within, neither `datasets` nor the hub's client draws any."""
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


def _read_saved(path: Path) -> dict[str, datasets.Dataset]:
    try:
        with without_progress_bars():
            saved = datasets.load_from_disk(str(path))
    except Exception as error:  # a damaged directory surfaces as any of a dozen types
        raise UsageError(f"{path}: cannot read what save_to_disk wrote here ({one_line(error)})") from error
    return dict(saved) if isinstance(saved, datasets.DatasetDict) else {TRAIN: saved}


def _scan(path: Path, forgiving: bool) -> media_folder.Tree:
    try:
        return media_folder.scan(path)
    except (UsageError, OSError):
        # A picture beside the data is no reason to refuse the data.
        if forgiving:
            return {}
        raise


def _roles(files: list[Path]) -> dict[str, list[Path]]:
    roles: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        if name := role(file.name):
            roles[name].append(file)
    return dict(roles)


def _read_roles(roles: dict[str, list[Path]]) -> dict[str, datasets.Dataset]:
    splits = {TRAIN: _read_shards(TRAIN, roles[TRAIN], ())} if TRAIN in roles else {}
    chosen = validation_name(roles)
    if chosen is not None:
        splits[chosen] = _read_shards(chosen, roles[chosen], _text_columns(splits.get(TRAIN)))
    return splits


def _read_shards(name: str, files: list[Path], text_columns: tuple[str, ...]) -> datasets.Dataset:
    """The files of one split, which may differ in their numbers only (`train-00000-of-00002.parquet`)."""
    if len({re.sub(r"\d+", "#", file.name) for file in files}) > 1:
        names = ", ".join(file.name for file in files)
        raise UsageError(f"{files[0].parent}: several files could be the {name} split: {names}; keep one of them")
    first = read(files[0], text_columns)
    rest = [read(file, _text_columns(first)) for file in files[1:]]
    for file, shard in zip(files[1:], rest, strict=True):
        if shard.features != first.features:
            raise UsageError(f"{file}: its columns or their types are not those of {files[0].name}")
    return datasets.concatenate_datasets([first, *rest]) if rest else first


def _text_columns(dataset: datasets.Dataset | None) -> tuple[str, ...]:
    features = {} if dataset is None else dataset.features
    return tuple(name for name, feature in features.items() if feature == datasets.Value("string"))
