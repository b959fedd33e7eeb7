"""Read directories of images or recordings that are named after their classes.

A row holds the path of its file, and no file is opened before its row is used.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import pyarrow as pa

from capaft.data.splits import TRAIN, WantedSplits, split_role
from capaft.support.counting import agreeing, counted
from capaft.support.errors import UsageError

MEDIA_SUFFIXES = {
    "image": (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tiff", ".tif"),
    "audio": (".wav", ".flac", ".mp3", ".ogg"),
}
MEDIA_KINDS = {suffix: kind for kind, suffixes in MEDIA_SUFFIXES.items() for suffix in suffixes}

# Split -> class -> its files.
Tree = dict[str, dict[str, list[Path]]]


@dataclass(frozen=True)
class _Directory:
    path: Path
    inner: list[Path]
    media: list[Path]
    others: int


def scan_media(path: Path, say: Callable[[str], None]) -> Tree:
    """Find the media below a directory: `train/cat/1.png` and `test/cat/2.png`, or `cat/1.png`. Empty if none.

    Args:
        path: the directory.
        say: called with one line for each directory whose files are ignored.

    Raises:
        UsageError: the split or the class of a file cannot be determined.
    """
    top = _look(path)
    groups = [_look(p) for p in top.inner]
    classes = {group.path: [_look(p) for p in group.inner] for group in groups}
    _check_has_class(top.media)
    if any(split_role(group.path.name) and _with_media(classes[group.path]) for group in groups):
        return _tree_of_splits(groups, classes, say)
    for inner in _with_media(inner for group in groups for inner in classes[group.path]):
        raise UsageError(
            f"{inner.path}: its {_kind(inner.media[0])} files are nested too deep; put class directories into "
            f"{path} or its train directory, or give another directory with --data"
        )
    filled = _with_media(groups)
    if filled and all(split_role(group.path.name) for group in filled):
        _check_has_class(filled[0].media)
    return {TRAIN: _files(filled, say)} if filled else {}


def read_media_folder(path: Path, tree: Tree, choice: WantedSplits) -> dict[str, datasets.Dataset]:
    """Build the chosen splits of a tree from `scan_media`, with columns `image` or `audio`, and `label`.

    Raises:
        UsageError: images and recordings are mixed, a class is missing from the train split, or a name is not UTF-8.
    """
    splits = {name: tree[name] for name in choice.among(tree) if name is not None}
    kind = _only_kind(path, (file for classes in splits.values() for group in classes.values() for file in group))
    names = sorted(next(iter(splits.values())))
    for classes in splits.values():
        _check_known(classes, names)
    return {split: _dataset(kind, classes, names) for split, classes in splits.items()}


def read_unlabelled_media(path: Path) -> datasets.Dataset | None:
    """An image or a recording, or all below a directory in the order of their paths; None if there are none.

    Raises:
        UsageError: images and recordings are mixed, or a name is not UTF-8.
    """
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if not _is_hidden(file, path))
    media = [file for file in files if file.suffix.lower() in MEDIA_KINDS]
    if not media:
        return None
    kind = _only_kind(path, media)
    paths = [os.path.abspath(file) for file in media]
    _check_names(paths)
    return datasets.Dataset(
        pa.table({kind: files_at(paths)}), datasets.DatasetInfo(features=datasets.Features({kind: feature_of(kind)}))
    )


def _is_hidden(file: Path, directory: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(directory).parts)


def _only_kind(path: Path, files: Iterable[Path]) -> str:
    kinds = {_kind(file): file for file in files}
    if len(kinds) > 1:
        raise UsageError(
            f"{path}: holds images and recordings ({' and '.join(map(str, kinds.values()))}); separate them"
        )
    return next(iter(kinds))


def _look(path: Path) -> _Directory:
    with os.scandir(path) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
        inner = sorted(path / entry.name for entry in visible if entry.is_dir())
        files = sorted(path / entry.name for entry in visible if entry.is_file())
    media = [file for file in files if file.suffix.lower() in MEDIA_KINDS]
    return _Directory(path, inner, media, len(files) - len(media))


def _tree_of_splits(
    groups: list[_Directory], classes: dict[Path, list[_Directory]], say: Callable[[str], None]
) -> Tree:
    tree: Tree = {}
    for group in groups:
        name = split_role(group.path.name)
        filled = _with_media(classes[group.path])
        if filled and name in tree:
            raise UsageError(f"{group.path}: there is another directory for the {name} split; keep one of them")
        if name is None and (filled or group.media):
            raise UsageError(f"{group.path}: not a split, but beside directories of splits; move it away")
        if filled:
            _check_has_class(group.media)
            tree[str(name)] = _files(filled, say)
        elif group.media:
            say(f"{group.path}: its files have no class and are ignored")
    return tree


def _files(classes: list[_Directory], say: Callable[[str], None]) -> dict[str, list[Path]]:
    for group in classes:
        if group.others:
            are = agreeing(group.others, "is", "are")
            say(f"{group.path}: {counted(group.others, 'file')} of other kinds {are} ignored")
    return {group.path.name: group.media for group in classes}


def _with_media(directories: Iterable[_Directory]) -> list[_Directory]:
    return [directory for directory in directories if directory.media]


def _kind(file: Path) -> str:
    return MEDIA_KINDS[file.suffix.lower()]


def _check_has_class(files: list[Path]) -> None:
    if files:
        raise UsageError(
            f"{files[0]}: this file has no class; put the files of each class into a directory named after it"
        )


def _check_known(classes: dict[str, list[Path]], names: list[str]) -> None:
    unknown = next((name for name in sorted(classes) if name not in names), None)
    if unknown is not None:
        close = difflib.get_close_matches(unknown, names, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise UsageError(f"{classes[unknown][0].parent}: the train split has no class {unknown}{hint}; move it away")


def _dataset(kind: str, classes: dict[str, list[Path]], names: list[str]) -> datasets.Dataset:
    rows = [(os.path.abspath(file), names.index(name)) for name in sorted(classes) for file in classes[name]]
    paths, labels = zip(*rows, strict=True)
    _check_names(paths)
    table = pa.table({kind: files_at(paths), "label": pa.array(labels, pa.int64())})
    features = datasets.Features({kind: feature_of(kind), "label": datasets.ClassLabel(names=names)})
    return datasets.Dataset(table, datasets.DatasetInfo(features=features))


def _check_names(paths: Iterable[str]) -> None:
    for path in paths:
        # Python's stand-ins for bytes that are not UTF-8; Arrow cannot hold them.
        if any("\ud800" <= character <= "\udfff" for character in path):
            raise UsageError(f"{path!r}: the name of this file is not UTF-8; rename it")


def feature_of(kind: str) -> datasets.Image | datasets.Audio:
    """Type of a column of images or recordings."""
    return datasets.Image(decode=False) if kind == "image" else datasets.Audio(decode=False)


def files_at(paths: Sequence[str | None]) -> pa.StructArray:
    """Build a column of images or recordings from their paths, without opening them."""
    parts = [pa.nulls(len(paths), pa.binary()), pa.array(paths, pa.string())]
    return pa.StructArray.from_arrays(parts, ["bytes", "path"], mask=pa.array([path is None for path in paths]))
