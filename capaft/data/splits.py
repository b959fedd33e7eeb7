"""Names of splits: which split a file or directory name means, and which split validates."""

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
    """Split that a name such as `Validation-v1.1` or `train-00000-of-00002.parquet` begins with, if any."""
    match = _ROLE.match(name.lower())
    if match is None or "mismatched" in name.lower():
        return None
    return VALIDATION if match[0].startswith("val") else match[0]


@dataclass(frozen=True)
class WantedSplits:
    """The user's choice of splits.

    Attributes:
        train: name of the split to train on; None for the one called train.
        evaluation: name of the split to score on; None for the first of `VALIDATION_NAMES`.
    """

    train: str | None = None
    evaluation: str | None = None

    def among(self, names: Collection[str]) -> tuple[str | None, str | None]:
        """Names of the split to train on and of the split to score on; None where there is none.

        Raises:
            UsageError: a split that the user asks for is missing.
        """
        for name in (self.train, self.evaluation):
            if name is not None and name not in names:
                hint = did_you_mean(name, names)
                raise UsageError(f"there is no split {name!r} in this data set; it has {', '.join(names)}{hint}")
        train = self.train or (TRAIN if TRAIN in names else None)
        usual = (name for name in VALIDATION_NAMES if name in names and name != train)
        return train, self.evaluation or next(usual, None)


BY_RULE = WantedSplits()
