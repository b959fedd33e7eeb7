"""The base class of the two ways in which models write speech down."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from capaft.model.load import BaseModel
from capaft.tasks.base.features import Batch


@dataclass(frozen=True)
class Transcripts:
    """Texts as a model writes them.

    Attributes:
        texts: what a recording is compared with.
        ids: the tokens to learn of each text.
        truncated: number of texts that lost a part to the model's positions.
        note: a line on what the model cannot write; empty if it can write all.
    """

    texts: Sequence[str]
    ids: Sequence[Sequence[int]]
    truncated: int = 0
    note: str = ""


@dataclass(frozen=True)
class Transcriber(ABC):
    """One way of writing speech down.

    Attributes:
        language: of the speech, a code such as `en`; empty if unknown.
        max_new_tokens: maximum number of tokens that a decoder writes.
        num_beams: beams of a decoder's search; 1 is greedy.
    """

    auto_class: ClassVar[str]
    """The transformers auto class of its models."""

    language: str
    max_new_tokens: int
    num_beams: int

    @abstractmethod
    def adjust(self, base: BaseModel) -> None:
        """Set up a model and its processor once they are loaded.

        Raises:
            UsageError: the language is missing, or the model does not know it.
        """

    @abstractmethod
    def transcripts(self, base: BaseModel, texts: Sequence[str]) -> Transcripts:
        """Texts as the model writes them.

        Raises:
            UsageError: the model's vocabulary is of another script, or it does not know the language.
        """

    @abstractmethod
    def batch(self, recordings: dict[str, Any], labels: Tensor, terms: int) -> Batch:
        """A batch of recordings with the tokens to learn.

        Args:
            recordings: as the feature extractor makes them.
            labels: `(batch, tokens)`, padded with `IGNORED`.
            terms: number of tokens to learn.
        """

    @abstractmethod
    def positions(self, base: BaseModel, samples: NDArray[np.int64], tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        """Number of positions at which the model predicts a token, `(recordings,)`.

        Args:
            base: the base model.
            samples: lengths of the recordings.
            tokens: lengths of their transcripts.
        """

    @abstractmethod
    def loss(self, outputs: Any, targets: Any, smoothing: float) -> Tensor:
        """The sum of the loss over the tokens."""

    @abstractmethod
    def written(self, base: BaseModel, model: nn.Module, batch: Batch, outputs: Any) -> list[str]:
        """The model's text for each recording of a batch."""
