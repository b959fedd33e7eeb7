"""Load whatever a user calls a data set: rows to train on and rows to score on.

A source is a file, a directory, or an id on the Hugging Face hub. Each becomes named splits; one rule then picks the
validation split, and without one `sampling.hold_out` takes it from the training rows. The disk wins over the hub, and
a file whose name ends in brackets over a slice.
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
from capaft.data.reading import Reading
from capaft.data.slices import split_off_slice
from capaft.data.splits import BY_RULE, TRAIN, WantedSplits
from capaft.data.tables import is_table
from capaft.data.width import check_classes, check_schema
from capaft.support.errors import UsageError, one_line
from capaft.support.listing import listed

Say = Callable[[str], None]
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+){0,2}")


class Splits(NamedTuple):
    """Rows of a source; None where it has no such split.

    Attributes:
        train: rows to train on.
        evaluation: rows to score on.
        name: the source's name for the split of the latter.
    """

    train: datasets.Dataset | None
    evaluation: datasets.Dataset | None = None
    name: str | None = None


def load_data(
    spec: str,
    choice: WantedSplits = BY_RULE,
    *,
    say: Say,
    revision: str | None = None,
    strict: bool = False,
) -> Splits:
    """Load a data set to train on; `train` is never None.

    Args:
        spec: a file, a directory (of split files, with one file, of images or recordings, of idx files, or from
            `save_to_disk`), or a hub id such as `imdb`, `glue/sst2`, `user/name` or `user/name/config`; optionally
            followed by a slice, `[a:b]` with counts or percentages, which takes a part of the training rows.
        choice: which splits to take, if not those by the rule.
        say: called with one line for each thing that is decided or ignored.
        revision: branch, tag or commit of a data set on the hub.
        strict: refuse a file of which a few faulty lines or rows would be left out.

    Raises:
        UsageError: there is no such source or split, it cannot be read, or it has no split to train on.
    """
    return _to_train(spec, _open(spec, choice, revision, Reading(say, strict)), choice)


def training_splits(name: str, splits: Mapping[str, datasets.Dataset], choice: WantedSplits = BY_RULE) -> Splits:
    """Take rows that a program hands over to train on, as `load_data` takes those of a source.

    Args:
        name: names them in messages.
        splits: the rows, by the names of their splits.
        choice: as in `load_data`.

    Raises:
        UsageError: they have too many columns or classes, no rows, or no split to train on.
    """
    return _to_train(name, _checked(name, splits), choice)


def _to_train(spec: str, available: Mapping[str, datasets.Dataset], choice: WantedSplits) -> Splits:
    splits = choose_splits(available, choice)
    if splits.train is None:
        names = listed(available)
        raise UsageError(f"{spec}: there is no train split among {names}; choose one with --train-split")
    if splits.evaluation is not None and 0 in (len(splits.train), len(splits.evaluation)):
        empty = splits.name if len(splits.train) else TRAIN
        raise UsageError(f"{spec}: there are no rows in the split {empty}; add rows or choose another split")
    return splits


def load_evaluation_data(
    spec: str,
    choice: WantedSplits = BY_RULE,
    *,
    say: Say,
    revision: str | None = None,
    strict: bool = False,
    kept_faults: dict[int, str] | None = None,
) -> Splits:
    """Load a data set to score a model on: its validation split, its training rows, or its only split.

    Args:
        spec: as in `load_data`; a slice leaves the validation split whole here too.
        choice: as in `load_data`.
        say: as in `load_data`.
        revision: as in `load_data`.
        strict: as in `load_data`.
        kept_faults: as in `Reading`, for a source that is one file.

    Raises:
        UsageError: there is no such source or split, it cannot be read, or none of its several splits is to be scored.
    """
    available = _open(spec, choice, revision, Reading(say, strict, kept_faults))
    splits = choose_splits(available, choice)
    if splits.train is None and splits.evaluation is None:
        if len(available) > 1:
            names = listed(available)
            raise UsageError(f"{spec}: there is no validation or train split among {names}; choose one with --split")
        return choose_splits(available, WantedSplits(evaluation=next(iter(available))))
    return splits


def choose_splits(splits: Mapping[str, datasets.Dataset], choice: WantedSplits) -> Splits:
    """Choose the splits to train on and to score on.

    Raises:
        UsageError: a split that the user asks for is missing.
    """
    train, name = choice.among(splits)
    return Splits(splits.get(str(train)), splits.get(str(name)), name)


def _open(spec: str, choice: WantedSplits, revision: str | None, reading: Reading) -> dict[str, datasets.Dataset]:
    """Read the splits of a source under their own names, train cut to its slice; a single file is train."""
    if spec and os.path.exists(os.path.expanduser(spec)):
        source, part = spec, None
    else:
        source, part = split_off_slice(spec)
    splits = _checked(spec, _read_source(source, choice, revision, reading))
    train, _ = choice.among(splits)
    if part is not None and train is not None:
        chosen = part.rows(len(splits[train]))
        if len(chosen) == 0:
            raise UsageError(f"{spec}: this slice takes none of the {len(splits[train])} training rows; choose another")
        reading.say(f"{spec}: {len(chosen)} of {len(splits[train])} training rows")
        splits[train] = splits[train].select(chosen)
    return splits


def _checked(spec: str, splits: Mapping[str, datasets.Dataset]) -> dict[str, datasets.Dataset]:
    """Splits of bounded width, their images and recordings as encoded files."""
    for rows in splits.values():
        check_schema(spec, rows.data.schema)
        check_classes(spec, rows.features)
    return {name: _undecoded(rows) for name, rows in splits.items()}


def _read_source(
    spec: str, choice: WantedSplits, revision: str | None, reading: Reading
) -> dict[str, datasets.Dataset]:
    path = Path(os.path.expanduser(spec))
    if spec and os.path.exists(path):
        try:
            if path.is_dir():
                return read_directory(path, choice, reading)
            return {TRAIN: read_idx_file(path) if is_idx(path) else read_table(path, reading)}
        except OSError as error:
            raise UsageError(f"{spec}: cannot read it ({one_line(error)})") from error
    if spec.startswith((".", "/", "~")) or is_table(path) or not _HUB_ID.fullmatch(spec):
        raise UsageError(f"{spec!r}: no such file or directory{_similar(path)}; give an existing one with --data")
    return fetch_dataset(spec, revision, _similar(path))


def _undecoded(rows: datasets.Dataset) -> datasets.Dataset:
    """Keep images and recordings as encoded files, for `capaft.data.media.decode` to open."""
    for name, feature in rows.features.items():
        if isinstance(feature, datasets.Image | datasets.Audio) and feature.decode:
            rows = rows.cast_column(name, dataclasses.replace(feature, decode=False))
    return rows


def _similar(path: Path) -> str:
    """Suggestion of a similar name in the same directory, or nothing."""
    try:
        neighbours = os.listdir(path.parent)
    except OSError:
        return ""
    close = difflib.get_close_matches(path.name, neighbours, n=1, cutoff=0.75)
    return f" (did you mean {path.parent / close[0]}?)" if close else ""
