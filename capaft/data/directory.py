"""Read the splits of a directory: a `save_to_disk` directory, idx files, tables, or class directories of media."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import datasets

from capaft.data.compressed import format_stem, format_suffix
from capaft.data.idx import is_idx, read_idx_directory
from capaft.data.media.folder import Tree, read_media_folder, scan_media
from capaft.data.media.table import with_files
from capaft.data.quiet import without_progress_bars
from capaft.data.reading import Reading
from capaft.data.splits import TRAIN, WantedSplits, split_role
from capaft.data.tables import TABLE_SUFFIXES, TEXT, is_table, read_rows
from capaft.support.errors import UsageError, one_line
from capaft.support.listing import listed
from capaft.support.out_of_memory import report_exhaustion

# Hugging Face's name for the table of labels beside images or recordings.
_METADATA = "metadata"
_SHARD = re.compile(r"[-_]\d+(-of-\d+)?$")


def read_table(file: Path, reading: Reading, text_columns: tuple[str, ...] = ()) -> datasets.Dataset:
    """Read a file of rows, with the images or recordings that it names."""
    return with_files(read_rows(file, text_columns, reading), file.parent)


def read_directory(path: Path, choice: WantedSplits, reading: Reading) -> dict[str, datasets.Dataset]:
    """Read the splits of a directory, under their own names: the chosen ones, and perhaps others.

    Args:
        path: the directory.
        choice: which splits to read.
        reading: choices of the reader.

    Raises:
        UsageError: there is nothing to read, the splits are ambiguous, or a file is damaged.
        OSError: the directory cannot be listed.
    """
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return _read_saved(path)
    visible = sorted(p for p in path.iterdir() if not p.name.startswith("."))
    if any(map(is_idx, visible)):
        return read_idx_directory(path, choice)
    files = [p for p in visible if is_table(p) and p.is_file()]
    # Beside other data, a text file is a note or a list.
    tables = [p for p in files if format_suffix(p) != TEXT]
    texts = [p for p in files if format_suffix(p) == TEXT]
    if _have_roles(tables, choice):
        return _read_splits(_splits(tables, choice), choice, reading)
    if metadata := [p for p in tables if format_stem(p) == _METADATA]:
        return {TRAIN: _read_shards(TRAIN, metadata, (), reading)}
    if metadata_of := {str(split_role(p.name)): files for p in visible if p.is_dir() and (files := _metadata(p))}:
        return _read_splits(metadata_of, choice, reading)
    tree = _scan(path, reading.say, forgiving=len(tables) == 1 or _have_roles(texts, choice))
    classes = {name for split in tree.values() for name in split}
    if len(tables) == 1 and len(classes) > 1:
        raise UsageError(
            f"{path}: both {tables[0].name} and the directories {', '.join(sorted(classes)[:4])} could be the data; "
            f"give {tables[0]} with --data, or move it away"
        )
    if len(tables) == 1:
        return {TRAIN: read_table(tables[0], reading)}
    if tree:
        return read_media_folder(path, tree, choice)
    if _have_roles(texts, choice):
        return _read_splits(_splits(texts, choice), choice, reading)
    if len(files) == 1:
        return {TRAIN: read_table(files[0], reading)}
    names = ", ".join(p.name for p in visible[:8]) or "nothing"
    raise UsageError(
        f"{path}: a directory of data needs files named train, validation or test, or exactly one data file "
        f"({' '.join(TABLE_SUFFIXES)}), or class directories of images or recordings; this one holds {names}"
    )


def _read_saved(path: Path) -> dict[str, datasets.Dataset]:
    try:
        with without_progress_bars():
            saved = datasets.load_from_disk(str(path))
    except Exception as error:  # a damaged directory surfaces as any of a dozen types
        report_exhaustion(error, f"reading {path}")
        raise UsageError(
            f"{path}: cannot read this save_to_disk directory ({one_line(error)}); save it again"
        ) from error
    return dict(saved) if isinstance(saved, datasets.DatasetDict) else {TRAIN: saved}


def _scan(path: Path, say: Callable[[str], None], forgiving: bool) -> Tree:
    try:
        return scan_media(path, say)
    except (UsageError, OSError):
        # A picture beside the data must not stop the run.
        if forgiving:
            return {}
        raise


def _have_roles(files: list[Path], choice: WantedSplits) -> bool:
    """True if any file is named like a split, by the rule or by the user's choice."""
    return any(split_role(file.name) or _stem(file) in (choice.train, choice.evaluation) for file in files)


def _stem(file: Path) -> str:
    """File name without suffix and shard number."""
    return _SHARD.sub("", format_stem(file))


def _metadata(directory: Path) -> list[Path]:
    """Tables of labels in a directory of images or recordings, if it is named like a split."""
    if split_role(directory.name) is None:
        return []
    return [p for p in sorted(directory.iterdir()) if format_stem(p) == _METADATA and is_table(p)]


def _splits(files: list[Path], choice: WantedSplits) -> dict[str, list[Path]]:
    """Files of each split, both under the role that their names begin with and under those names."""
    by_role: dict[str, list[Path]] = defaultdict(list)
    by_name: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        by_name[_stem(file)].append(file)
        if name := split_role(file.name):
            by_role[name].append(file)
    chosen = {name: by_name[name] for name in (choice.train, choice.evaluation) if name in by_name}
    return {**by_name, **by_role, **chosen}


def _read_splits(files: dict[str, list[Path]], choice: WantedSplits, reading: Reading) -> dict[str, datasets.Dataset]:
    train, evaluation = choice.among(files)
    splits = {} if train is None else {train: _read_shards(train, files[train], (), reading)}
    if evaluation is not None:
        splits[evaluation] = _read_shards(evaluation, files[evaluation], _text_columns(splits.get(str(train))), reading)
    return splits


def _read_shards(name: str, files: list[Path], text_columns: tuple[str, ...], reading: Reading) -> datasets.Dataset:
    """Read the files of one split, whose names may differ in numbers only (`train-00000-of-00002.parquet`)."""
    if len({re.sub(r"\d+", "#", file.name) for file in files}) > 1:
        names = listed(file.name for file in files)
        raise UsageError(f"{files[0].parent}: several files could be the {name} split: {names}; keep one of them")
    first = read_table(files[0], reading, text_columns)
    others = [read_table(file, reading, _text_columns(first)) for file in files[1:]]
    for file, shard in zip(files[1:], others, strict=True):
        if shard.features != first.features:
            raise UsageError(
                f"{file}: its columns or their types differ from those of {files[0].name}; make them the same"
            )
    return datasets.concatenate_datasets([first, *others]) if others else first


def _text_columns(dataset: datasets.Dataset | None) -> tuple[str, ...]:
    features = {} if dataset is None else dataset.features
    return tuple(name for name, feature in features.items() if feature == datasets.Value("string"))
