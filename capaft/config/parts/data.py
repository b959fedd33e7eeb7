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
        None, "Split of the data set to validate on (default: validation, dev, eval or test).", metavar="name"
    )
    text_column: str | None = _setting(
        None, "Input column: text, tokens, prompt, messages, question, image or audio (default: inferred)."
    )
    pair_column: str | None = _setting(
        None, "Second input column: the other text of a pair, the context of a question (default: inferred)."
    )
    label_column: str | None = _setting(
        None,
        "Target column: label, tags, answers, completion or summary; a,b,c if each label has a column of 0 and 1 "
        "(default: inferred).",
    )
    validation_split: float = _setting(
        0.1,
        "Share of the training data to set aside where there is no validation split.",
        check=("in (0, 1)", lambda value: 0 < value < 1),
    )
    max_train_examples: int | None = _setting(
        None, "Number of training examples at most (default: all).", check=at_least(1)
    )
    max_eval_examples: int | None = _setting(
        None, "Number of validation examples at most (default: all).", check=at_least(1)
    )
    strict: bool = _setting(False, "Refuse data with rows that cannot be used, rather than leave them out.")
    shots: int | None = _setting(None, "Number of training examples of each class (default: all).", check=at_least(1))
    show: int = _setting(0, "Number of training examples to print, decoded, before training.", check=at_least(0))
