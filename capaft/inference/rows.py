"""Rows to answer, from wherever they come: some thousand at a time, so that their number takes no memory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from datasets import Dataset, Value

from capaft.data.load import Say, load_evaluation_data
from capaft.data.media.folder import MEDIA_KINDS, read_unlabelled_media
from capaft.data.quiet import without_progress_bars
from capaft.data.splits import WantedSplits
from capaft.data.tables import is_table
from capaft.support.errors import UsageError, did_you_mean
from capaft.support.listing import listed
from capaft.tasks.base.columns import Columns, cell_kind, list_columns
from capaft.tasks.language.generation import Generation
from capaft.training.setup.column_hints import ColumnHints, present_columns

if TYPE_CHECKING:
    from capaft.training.record.saved_run import SavedRun

WINDOW = 2048
"""Rows that are answered at a time: many batches, which are made by length."""

# Rows that show which columns are the inputs.
_HEAD = 10_000


@dataclass(frozen=True)
class Window:
    """Some rows in their order.

    Attributes:
        rows: the rows.
        first: number of the first of them, from 1.
        faults: those of them that could not be read, by position, each with what is wrong.
    """

    rows: Dataset
    first: int = 1
    faults: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RowSource:
    """Rows to answer.

    Attributes:
        columns: the columns of the inputs.
        windows: the rows, some at a time.
        names: all columns.
        total: number of rows; None if nobody knows.
    """

    columns: Columns
    windows: Iterator[Window]
    names: tuple[str, ...]
    total: int | None = None


def input_names(saved: SavedRun, *, paired: bool = False) -> tuple[str, str | None]:
    """Names of the input columns for rows without columns: those of the training, else usual ones.

    Args:
        saved: the opened run.
        paired: the rows have two inputs; it counts where nobody knows how many the training had.
    """
    text, *others = saved.task.input_names
    pair = others[0] if others else None
    if saved.config is None:
        return text, pair or ("pair" if paired else None)
    return saved.config.text_column or text, saved.config.pair_column or pair


def load_rows(spec: str, split: str | None, say: Say) -> tuple[Dataset, dict[int, str]]:
    """The rows of a data set, and those that cannot be read, by position, each with what is wrong.

    Args:
        spec: a data set as `capaft train` takes it, an image, a recording, or a directory of one of these.
        split: its split; by default the one that `capaft eval` would score.
        say: called with a line for each decision.

    Raises:
        UsageError: it cannot be read.
    """
    path = Path(os.path.expanduser(spec))
    if split is None and spec and os.path.exists(path) and (media := _media(path)) is not None:
        return media, {}
    faults: dict[int, str] = {}
    source = load_evaluation_data(spec, WantedSplits(evaluation=split), say=say, kept_faults=faults)
    rows = source.train if source.evaluation is None else source.evaluation
    assert rows is not None
    if source.evaluation is not None and source.train is not None:
        say(f"the rows are those of the split {source.name}; choose another with --split")
    # In a slice, or one of several files, the rows have other positions; there they say only that they are empty.
    return rows, faults if path.is_file() else {}


def _media(path: Path) -> Dataset | None:
    """The images or recordings at a path where no table names them."""
    if path.is_file():
        return read_unlabelled_media(path) if path.suffix.lower() in MEDIA_KINDS else None
    if not path.is_dir():
        # A pipe, or a device.
        return None
    files = [file for file in path.iterdir() if file.is_file()]
    if any(is_table(file) for file in files) or any(path.glob("*/metadata.*")) or (path / "state.json").exists():
        return None
    return read_unlabelled_media(path)


def find_inputs(saved: SavedRun, rows: Dataset, named: Mapping[str, str | None], say: Say) -> tuple[Dataset, Columns]:
    """The columns of the inputs: those that the user names, those of the training, or else any that fit.

    Args:
        saved: the opened run.
        rows: the rows.
        named: the columns that the user names, by role.
        say: called with a line about columns that are not those of the training.

    Returns:
        The rows, in which inputs that look like numbers are the texts that they were, and the columns.

    Raises:
        UsageError: the columns cannot be determined.
    """
    writes = isinstance(saved.task, Generation)
    first, second = input_names(saved) if saved.config else (None, None)
    _check_second(rows, input_names(saved)[1], named, is_optional=writes)
    expected = {"text": first, "pair": second}
    rows = _as_texts(rows, [*present_columns(rows, expected).values(), *named.values()])
    # The training alone tells whether there are two inputs; what a task usually takes does not.
    second = saved.config.pair_column if saved.config else None
    if writes and second not in rows.column_names:
        # The further text of a source is one that many rows lack.
        second = None
    hints = ColumnHints(saved.task.find_inputs, expected, named, (first, second))
    columns = hints.recognise(rows.select(range(min(len(rows), _HEAD))))
    is_single = saved.config is not None and second is None and not writes
    if is_single and columns.pair is not None and columns.pair != expected["pair"]:
        raise UsageError(
            f"the training data had one input, {first!r}, and these rows would be read as two, {columns.text!r} and "
            f"{columns.pair!r}; name the one with --text-column"
        )
    if (columns.text, columns.pair) != (first, second):
        say(columns.describe())
    return rows, columns


def _check_second(rows: Dataset, name: str | None, named: Mapping[str, str | None], *, is_optional: bool) -> None:
    """Make sure that texts come in pairs where the adapter takes pairs.

    Raises:
        UsageError: no row has a second text.
    """
    if not is_optional and not named.get("pair") and rows.features.get(name) == Value("null"):
        raise UsageError(
            f"this adapter takes two texts a row, and the second, {name!r}, is missing: give it with --pair-text, "
            "after a tab in a line, or name its column with --pair-column"
        )


def _as_texts(rows: Dataset, names: list[str | None]) -> Dataset:
    """The rows with texts in place of numbers in some columns, which in few rows may all look like numbers."""
    for name in dict.fromkeys(names):
        if name not in rows.column_names:
            continue
        if cell_kind(rows.features[name]) in ("integer", "float", "bool") or rows.features[name] == Value("null"):
            with without_progress_bars():
                rows = rows.cast_column(name, Value("string"))
    return rows


def windows_of(rows: Dataset, faults: Mapping[int, str]) -> Iterator[Window]:
    """The rows of a table, some at a time."""
    for start in range(0, len(rows), WINDOW):
        end = min(start + WINDOW, len(rows))
        wrong = {at - start: faults[at] for at in range(start, end) if at in faults} if faults else {}
        yield Window(rows.select(range(start, end)), start + 1, wrong)


def check_kept(keep: Sequence[str] | None, rows: Dataset) -> None:
    """Make sure that the columns to be passed on are there.

    Raises:
        UsageError: one is not.
    """
    for name in keep or ():
        if name not in rows.column_names:
            hint = did_you_mean(name, rows.column_names)
            raise UsageError(f"--keep {name}: there is no such column; the columns are {list_columns(rows)}{hint}")


def check_columns(named: Mapping[str, str | None], what: str) -> None:
    """Make sure that no column is named where there are none.

    Raises:
        UsageError: one is.
    """
    flags = [f"--{role}-column" for role, name in named.items() if name]
    if flags:
        raise UsageError(f"{listed(flags)}: {what} has no columns; drop it, or give rows with --data FILE")
