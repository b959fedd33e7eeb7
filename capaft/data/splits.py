"""How the name of a file or directory says which split it holds, and which of the splits validates."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from capaft.support.errors import UsageError, did_you_mean

TRAIN = "train"
VALIDATION = "validation"
# The first of these that a source has is its validation split.
VALIDATION_NAMES = (VALIDATION, "validation_matched", "valid", "val", "dev", "eval", "evaluation", "test")

_ROLE = re.compile(r"train|valid|val(?![a-z])|dev|eval(?![a-z])|evaluation|test")


def split_role(name: str) -> str | None:
    """The split that a name begins with, be it `Validation-v1.1` or `train-00000-of-00002.parquet`, if it does."""
    match = _ROLE.match(name.lower())
    if match is None or "mismatched" in name.lower():
        return None
    return VALIDATION if match[0].startswith("val") else match[0]


@dataclass(frozen=True)
class WantedSplits:
    """Which splits a user asks for.

    Attributes:
        train: the one to train on; None for the one called train.
        evaluation: the one to score on; None for the first of `VALIDATION_NAMES`.
    """

    train: str | None = None
    evaluation: str | None = None

    def among(self, names: Collection[str]) -> tuple[str | None, str | None]:
        """The names of the split to train on and of the one to score on, as far as there are any.

        Raises:
            UsageError: the user asks for one that is not there.
        """
        for name in (self.train, self.evaluation):
            if name is not None and name not in names:
                hint = did_you_mean(name, names)
                raise UsageError(f"there is no split {name!r} in this data set; it has {', '.join(names)}{hint}")
        train = self.train or (TRAIN if TRAIN in names else None)
        usual = (name for name in VALIDATION_NAMES if name in names and name != train)
        return train, self.evaluation or next(usual, None)


BY_RULE = WantedSplits()
