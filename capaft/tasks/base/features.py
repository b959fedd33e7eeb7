"""Examples as a model takes them, and batches of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Features:
    """Examples as a model takes them: tokenised texts, or images still to be read.

    A feature need not be a row: long contexts become several, short texts are packed into one.

    Attributes:
        inputs: columns that `collate` pads and stacks, by name, each with one entry a feature.
        lengths: the order of batches, `(features,)`: mostly numbers of tokens.
        references: the truth that `score` compares predictions with, in whatever form the task likes; None for rows
            without a target.
        truncated: number of rows that lost a part to the maximum length.
        sources: the inputs as people read them, by feature: a text, or several by name; may be empty.
        left_out: a note on rows that could not be used; empty if all could.
        notes: lines on how the rows were read, where that may surprise.
        rows: number of rows, if it is not the number of features.
    """

    inputs: dict[str, Sequence[Any]]
    lengths: NDArray[np.int64]
    references: Any = None
    truncated: int = 0
    sources: Sequence[Any] = ()
    left_out: str = ""
    rows: int | None = None
    notes: Sequence[str] = ()

    @property
    def examples(self) -> int:
        """Number of rows that the features were made of."""
        return len(self) if self.rows is None else self.rows

    def __len__(self) -> int:
        return len(self.lengths)

    def targets(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """The references of some features as `labels`, where they are an array; nothing without references."""
        if self.references is None:
            return {}
        return {"labels": torch.from_numpy(self.references[list(indices)])}

    def at(self, rows: NDArray[np.int64]) -> Features:
        """Some features, by their positions; references have one entry a feature, if there are any."""
        references, has_sources = self.references, len(self.sources) == len(self)
        if isinstance(references, np.ndarray):
            references = references[rows]
        elif references is not None:
            references = [references[row] for row in rows]
        return replace(
            self,
            inputs={name: _Rows(values, rows) for name, values in self.inputs.items()},
            lengths=self.lengths[rows],
            references=references,
            sources=_Rows(self.sources, rows) if has_sources else (),
            rows=None,
        )


class _Rows(Sequence[Any]):
    """Some entries of a sequence, which may be on disk: read when asked for."""

    def __init__(self, values: Sequence[Any], rows: NDArray[np.int64]) -> None:
        self._values = values
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return _Rows(self._values, self._rows[index])
        return self._values[int(self._rows[index])]


@dataclass(frozen=True)
class Batch:
    """Some features, padded.

    Attributes:
        inputs: arguments of the model's forward.
        targets: tensors that `loss` compares the outputs with.
        terms: number of terms in the sum that is the loss: examples, or tokens that count.
    """

    inputs: dict[str, Tensor]
    targets: dict[str, Tensor]
    terms: int
