"""Anything a user calls a data set -> its rows to train on and those to score on.

A source is a file, a directory, or an id on the Hugging Face hub. Each becomes named splits; one rule then says
which is the validation split, and `cut` makes one of training rows where there is none. What is on disk
wins over the hub, and a file whose name ends in brackets over a slice.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import datasets

from capaft.data.directory import read_directory, read_table
from capaft.data.hub_datasets import fetch_dataset
from capaft.data.idx import is_idx, read_idx_file
from capaft.data.slices import split_off_slice
from capaft.data.splits import BY_RULE, TRAIN, WantedSplits
from capaft.data.tables import TABLE_SUFFIXES
from capaft.support.errors import UsageError, one_line

Say = Callable[[str], None]
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+){0,2}")


class Splits(NamedTuple):
    """What a source has of rows, as far as it has them.

    Attributes:
        train: those to train on.
        evaluation: those to score on.
        name: what the source calls the latter.
    """

    train: datasets.Dataset | None
    evaluation: datasets.Dataset | None = None
    name: str | None = None


def load_data(
    spec: str,
    wanted: WantedSplits = BY_RULE,
    *,
    say: Say,
    revision: str | None = None,
) -> Splits:
    """Load a data set to train on; `train` is there.

    Args:
        spec: a file, a directory (of split files, with one file, of images or recordings, of idx files, or from
            `save_to_disk`), or a hub id such as `imdb`, `glue/sst2`, `user/name` or `user/name/config`; then perhaps
            a slice, `[a:b]` with counts or percentages, which takes a part of the training rows.
        wanted: which splits to take, where it is not the rule that says so.
        say: told one line for each thing that is decided or left aside.
        revision: branch, tag or commit of a data set on the hub.

    Raises:
        UsageError: there is no such source or split, it cannot be read, or it has no split to train on.
    """
    found = _open(spec, wanted, revision, say)
    splits = choose_splits(found, wanted)
    if splits.train is None:
        raise UsageError(f"{spec}: there is no train split among {', '.join(found)}; choose one with --train-split")
    if splits.evaluation is not None and 0 in (len(splits.train), len(splits.evaluation)):
        raise UsageError(f"{spec}: there are no rows in the split {splits.name if len(splits.train) else TRAIN}")
    return splits


def load_evaluation_data(
    spec: str,
    wanted: WantedSplits = BY_RULE,
    *,
    say: Say,
    revision: str | None = None,
) -> Splits:
    """Load a data set to score a model on: its validation split, its training rows, or its only split.

    Args:
        spec: as in `load`; a slice leaves the validation split whole here too.
        wanted: as in `load`.
        say: as in `load`.
        revision: as in `load`.

    Raises:
        UsageError: there is no such source or split, it cannot be read, or it has several splits and none to take.
    """
    found = _open(spec, wanted, revision, say)
    splits = choose_splits(found, wanted)
    if splits.train is None and splits.evaluation is None:
        if len(found) > 1:
            raise UsageError(
                f"{spec}: there is no validation or train split among {', '.join(found)}; choose one with --split"
            )
        return choose_splits(found, WantedSplits(evaluation=next(iter(found))))
    return splits


def choose_splits(splits: Mapping[str, datasets.Dataset], wanted: WantedSplits) -> Splits:
    """Those of named splits that are wanted.

    Raises:
        UsageError: one that is asked for is not there.
    """
    train, name = wanted.among(splits)
    return Splits(splits.get(str(train)), splits.get(str(name)), name)


def _open(spec: str, wanted: WantedSplits, revision: str | None, say: Say) -> dict[str, datasets.Dataset]:
    """The splits of a source under their own names, with what a slice leaves of train; one file alone is train."""
    if spec and os.path.exists(os.path.expanduser(spec)):
        source, part = spec, None
    else:
        source, part = split_off_slice(spec)
    splits = {name: _undecoded(rows) for name, rows in _read_source(source, wanted, revision, say).items()}
    train, _ = wanted.among(splits)
    if part is not None and train is not None:
        chosen = part.rows(len(splits[train]))
        if len(chosen) == 0:
            raise UsageError(f"{spec}: this slice takes none of the {len(splits[train])} training rows")
        say(f"{spec}: {len(chosen)} of {len(splits[train])} training rows")
        splits[train] = splits[train].select(chosen)
    return splits


def _read_source(spec: str, wanted: WantedSplits, revision: str | None, say: Say) -> dict[str, datasets.Dataset]:
    path = Path(os.path.expanduser(spec))
    if spec and os.path.exists(path):
        try:
            if path.is_dir():
                return read_directory(path, wanted, say)
            return {TRAIN: read_idx_file(path) if is_idx(path) else read_table(path)}
        except OSError as error:
            raise UsageError(f"{spec}: cannot read this ({one_line(error)})") from error
    if spec.startswith((".", "/", "~")) or path.suffix.lower() in TABLE_SUFFIXES or not _HUB_ID.fullmatch(spec):
        raise UsageError(f"{spec!r}: no such file or directory{_similar(path)}; give an existing one with --data")
    return fetch_dataset(spec, revision, _similar(path))


def _undecoded(rows: datasets.Dataset) -> datasets.Dataset:
    """The rows with images and recordings as the files they are in; `capaft.data.media.decode` opens them."""
    for name, feature in rows.features.items():
        if isinstance(feature, datasets.Image | datasets.Audio) and feature.decode:
            rows = rows.cast_column(name, dataclasses.replace(feature, decode=False))
    return rows


def _similar(path: Path) -> str:
    """A hint at what stands in the same directory under a similar name, or nothing."""
    try:
        neighbours = os.listdir(path.parent)
    except OSError:
        return ""
    close = difflib.get_close_matches(path.name, neighbours, n=1, cutoff=0.75)
    return f" (did you mean {path.parent / close[0]}?)" if close else ""
