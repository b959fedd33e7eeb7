"""What the commands that open a finished adapter can be told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from capaft.config.choices import BaseDtype
from capaft.config.settings import Settings, setting
from capaft.support.errors import UsageError

_base = partial(setting, panel="Base model")
_data = partial(setting, panel="Data")
_scores = partial(setting, panel="Scores")


@dataclass(frozen=True)
class OpenOptions(Settings):
    """How a run or an adapter file is put on its base model again."""

    model: str | None = _base(None, "Base model (default: the one the run or the file names).", metavar="path|id")
    rename: tuple[str, ...] | None = _base(
        None, "A module name that changed since training; may be repeated.", metavar="old=new", repeated=True
    )
    allow_base_mismatch: bool = _base(False, "Use the adapter although the base weights differ.")
    base_dtype: BaseDtype | None = _base(None, "Dtype of the base's weights (default: as in the run, else float32).")

    @property
    def renames(self) -> dict[str, str]:
        """`rename` as `{old: new}`.

        Raises:
            UsageError: an entry is not OLD=NEW.
        """
        return parse_pairs(self.rename or (), "--rename OLD=NEW")


@dataclass(frozen=True)
class EvalOptions(OpenOptions):
    """What `capaft eval` can be told."""

    data: str | None = _data(None, "Data set to score on (default: the run's validation split).", metavar="path|id")
    split: str | None = _data(None, "Split of the data to score on, such as test.", metavar="name")
    text_column: str | None = _data(None, "Column of the text.")
    pair_column: str | None = _data(None, "Column of the second text.")
    label_column: str | None = _data(None, "Column of the label.")
    max_examples: int | None = _data(
        None, "Score on this many examples at most.", check=("at least 1", lambda value: value >= 1)
    )
    metric: str | None = _scores(None, "Metric (default: the one it was trained for).")
    set: tuple[str, ...] | None = _scores(
        None,
        "An option of the task to change, such as num_beams=4; may be repeated.",
        metavar="name=value",
        repeated=True,
    )
    predictions: Path | None = _scores(None, "Write the predictions to this JSON lines file.")

    @property
    def columns(self) -> dict[str, str | None]:
        """The named columns, by role."""
        return {"text": self.text_column, "pair": self.pair_column, "label": self.label_column}

    @property
    def task_options(self) -> dict[str, str]:
        """`set` as `{name: value}`.

        Raises:
            UsageError: an entry is not NAME=VALUE.
        """
        return parse_pairs(self.set or (), "--set NAME=VALUE")


def parse_pairs(entries: Sequence[str], form: str) -> dict[str, str]:
    """`["a=b", ...]` as a dictionary.

    Args:
        entries: what the user typed.
        form: the flag and how an entry is written, such as `--rename OLD=NEW`.

    Raises:
        UsageError: an entry is not written so.
    """
    flag, shape = form.split()
    pairs = {}
    for entry in entries:
        first, equals, second = entry.partition("=")
        if not (first and equals and second):
            raise UsageError(f"{flag} {entry} must be {shape.lower()}")
        pairs[first] = second
    return pairs
