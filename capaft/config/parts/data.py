"""The data set, its splits and columns, and how much of it is used."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from capaft.config.ranges import at_least
from capaft.config.settings import Settings, setting

_setting = partial(setting, panel="Model and data")


@dataclass(frozen=True)
class DataSettings(Settings):
    """The data set, its splits and columns, and how much of it is used."""

    data: str | None = _setting(
        None, "Data set, as a file, a directory or a hub id (default: the embedded demo).", metavar="path|id"
    )
    train_split: str | None = _setting(None, "Split of the data set to train on (default: train).", metavar="name")
    eval_split: str | None = _setting(
        None, "Split of the data set that validates (default: validation, dev, eval or test).", metavar="name"
    )
    text_column: str | None = _setting(
        None, "Column that goes in: text, tokens, prompt, messages, question, image or audio (default: found)."
    )
    pair_column: str | None = _setting(
        None, "Column of its second part: the other text of a pair, the context of a question (default: found)."
    )
    label_column: str | None = _setting(
        None,
        "Column that should come out: label, tags, answers, completion or summary; a,b,c for a column of 0 and 1 for "
        "each label (default: found).",
    )
    validation_split: float = _setting(
        0.1,
        "Share of the training data set aside where there is no validation split.",
        check=("in (0, 1)", lambda value: 0 < value < 1),
    )
    max_train_examples: int | None = _setting(
        None, "Train on this many examples at most (default: all of them).", check=at_least(1)
    )
    max_eval_examples: int | None = _setting(
        None, "Evaluate on this many examples at most (default: all of them).", check=at_least(1)
    )
    shots: int | None = _setting(None, "Train on this many examples of each class (default: all).", check=at_least(1))
    show: int = _setting(0, "Print this many training examples, decoded, before training.", check=at_least(0))
