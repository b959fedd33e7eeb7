"""Examples as a model takes them, and batches of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Features:
    """Examples as a model takes them: tokenised texts, or images still to be read.

    A feature need not be a row: long contexts become several, short texts are packed into one.

    Attributes:
        inputs: what `collate` pads and stacks, by name, each of one entry a feature.
        lengths: what batches are sorted by, `(features,)`: tokens, mostly.
        references: what `score` compares predictions with, in whatever form the task likes.
        truncated: how many rows lost a part to the maximum length.
        sources: what went in, for people, by feature: a text, or several by name; may be empty.
        left_out: what people should know of rows that could not be used; empty if all could.
        rows: how many rows these are, if not as many.
    """

    inputs: dict[str, Sequence[Any]]
    lengths: NDArray[np.int64]
    references: Any = None
    truncated: int = 0
    sources: Sequence[Any] = ()
    left_out: str = ""
    rows: int | None = None

    @property
    def examples(self) -> int:
        """How many rows these are."""
        return len(self) if self.rows is None else self.rows

    def __len__(self) -> int:
        return len(self.lengths)


@dataclass(frozen=True)
class Batch:
    """Some features, padded.

    Attributes:
        inputs: arguments of the model's forward.
        targets: what `loss` compares the outputs with.
        terms: how many terms the loss is a sum of: examples, or tokens that count.
    """

    inputs: dict[str, Tensor]
    targets: dict[str, Tensor]
    terms: int
