"""A directory -> its splits: what `save_to_disk` wrote, idx files, tables, or classes of media."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import datasets

from capaft.data.idx import is_idx, read_idx_directory
from capaft.data.media.folder import Tree, read_media_folder, scan_media
from capaft.data.media.table import with_files
from capaft.data.quiet import without_progress_bars
from capaft.data.splits import TRAIN, WantedSplits, split_role
from capaft.data.tables import TABLE_SUFFIXES, TEXT, read_rows
from capaft.support.errors import UsageError, one_line

# How Hugging Face calls the table beside images or recordings that says what they show.
_METADATA = "metadata"
_SHARD = re.compile(r"[-_]\d+(-of-\d+)?$")


def read_table(file: Path, text_columns: tuple[str, ...] = ()) -> datasets.Dataset:
    """A file of rows as `read` takes it, with the images or recordings that it names."""
    return with_files(read_rows(file, text_columns), file.parent)


def read_directory(path: Path, wanted: WantedSplits, say: Callable[[str], None]) -> dict[str, datasets.Dataset]:
    """The splits of a directory under their own names: at least those that are wanted and there.

    Args:
        path: the directory.
        wanted: which splits are read.
        say: told one line for whatever is left aside.

    Raises:
        UsageError: there is nothing to read, or more than can be told apart, or it is damaged.
        OSError: the directory cannot be listed.
    """
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return _read_saved(path)
    visible = sorted(p for p in path.iterdir() if not p.name.startswith("."))
    if any(map(is_idx, visible)):
        return read_idx_directory(path, wanted)
    files = [p for p in visible if p.suffix.lower() in TABLE_SUFFIXES and p.is_file()]
    # Beside other data, a text file is a note or a list.
    tables = [p for p in files if p.suffix.lower() != TEXT]
    texts = [p for p in files if p.suffix.lower() == TEXT]
    if _have_roles(tables, wanted):
        return _read_splits(_splits(tables, wanted), wanted)
    if beside := [p for p in tables if p.stem == _METADATA]:
        return {TRAIN: _read_shards(TRAIN, beside, ())}
    if within := {str(split_role(each.name)): p for each in visible if each.is_dir() and (p := _metadata(each))}:
        return _read_splits(within, wanted)
    tree = _scan(path, say, forgiving=len(tables) == 1 or _have_roles(texts, wanted))
    classes = {name for split in tree.values() for name in split}
    if len(tables) == 1 and len(classes) > 1:
        raise UsageError(
            f"{path}: both {tables[0].name} and the directories {', '.join(sorted(classes)[:4])} could be the data; "
            f"give {tables[0]} with --data, or move it away"
        )
    if len(tables) == 1:
        return {TRAIN: read_table(tables[0])}
    if tree:
        return read_media_folder(path, tree, wanted)
    if _have_roles(texts, wanted):
        return _read_splits(_splits(texts, wanted), wanted)
    if len(files) == 1:
        return {TRAIN: read_table(files[0])}
    there = ", ".join(p.name for p in visible[:8]) or "nothing"
    raise UsageError(
        f"{path}: neither files named train, validation or test nor exactly one data file "
        f"({' '.join(TABLE_SUFFIXES)}) nor classes of images or recordings in this directory; it holds {there}"
    )


def _read_saved(path: Path) -> dict[str, datasets.Dataset]:
    try:
        with without_progress_bars():
            saved = datasets.load_from_disk(str(path))
    except Exception as error:  # a damaged directory surfaces as any of a dozen types
        raise UsageError(f"{path}: cannot read what save_to_disk wrote here ({one_line(error)})") from error
    return dict(saved) if isinstance(saved, datasets.DatasetDict) else {TRAIN: saved}


def _scan(path: Path, say: Callable[[str], None], forgiving: bool) -> Tree:
    try:
        return scan_media(path, say)
    except (UsageError, OSError):
        # A picture beside the data is no reason to refuse the data.
        if forgiving:
            return {}
        raise


def _have_roles(files: list[Path], wanted: WantedSplits) -> bool:
    """Whether files are named as splits, by the rule or by the user."""
    return any(split_role(file.name) or _stem(file) in (wanted.train, wanted.evaluation) for file in files)


def _stem(file: Path) -> str:
    """The name of a file without its suffix and the number of a shard."""
    return _SHARD.sub("", file.stem)


def _metadata(directory: Path) -> list[Path]:
    """The table that says what the images or recordings in a directory of a split show, if it has one."""
    if split_role(directory.name) is None:
        return []
    return [p for p in sorted(directory.iterdir()) if p.stem == _METADATA and p.suffix.lower() in TABLE_SUFFIXES]


def _splits(files: list[Path], wanted: WantedSplits) -> dict[str, list[Path]]:
    """The files of each split: under the role that their names begin with, and under those names."""
    by_role: dict[str, list[Path]] = defaultdict(list)
    by_name: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        by_name[_stem(file)].append(file)
        if name := split_role(file.name):
            by_role[name].append(file)
    asked = {name: by_name[name] for name in (wanted.train, wanted.evaluation) if name in by_name}
    return {**by_name, **by_role, **asked}


def _read_splits(splits: dict[str, list[Path]], wanted: WantedSplits) -> dict[str, datasets.Dataset]:
    train, evaluation = wanted.among(splits)
    found = {} if train is None else {train: _read_shards(train, splits[train], ())}
    if evaluation is not None:
        found[evaluation] = _read_shards(evaluation, splits[evaluation], _text_columns(found.get(str(train))))
    return found


def _read_shards(name: str, files: list[Path], text_columns: tuple[str, ...]) -> datasets.Dataset:
    """The files of one split, which may differ in their numbers only (`train-00000-of-00002.parquet`)."""
    if len({re.sub(r"\d+", "#", file.name) for file in files}) > 1:
        names = ", ".join(file.name for file in files)
        raise UsageError(f"{files[0].parent}: several files could be the {name} split: {names}; keep one of them")
    first = read_table(files[0], text_columns)
    rest = [read_table(file, _text_columns(first)) for file in files[1:]]
    for file, shard in zip(files[1:], rest, strict=True):
        if shard.features != first.features:
            raise UsageError(f"{file}: its columns or their types are not those of {files[0].name}")
    return datasets.concatenate_datasets([first, *rest]) if rest else first


def _text_columns(dataset: datasets.Dataset | None) -> tuple[str, ...]:
    features = {} if dataset is None else dataset.features
    return tuple(name for name, feature in features.items() if feature == datasets.Value("string"))
