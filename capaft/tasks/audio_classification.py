"""Audio classification: a recording to one of several classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import datasets
import numpy as np

from capaft.config.choices import MAX_SECONDS
from capaft.config.parts.model import ModelSettings
from capaft.model.load import BaseModel
from capaft.tasks.base.columns import Columns
from capaft.tasks.base.features import Batch, Features
from capaft.tasks.media.classification import MediaClassification
from capaft.tasks.media.recordings import (
    AUDIO,
    AUDIO_NAMES,
    extracted,
    holds_recordings,
    recording_seconds,
    without_random_masks,
)

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class AudioClassification(MediaClassification):
    """Recordings are read when a batch is made, resampled, cut, and prepared by the checkpoint's feature extractor.

    Attributes:
        max_seconds: seconds that longer recordings are cut to, from their beginning.
    """

    name: ClassVar[str] = "audio-classification"
    summary: ClassVar[str] = "A recording to one of several classes."
    auto_class: ClassVar[str] = "AutoModelForAudioClassification"
    processor: ClassVar[str] = "AutoFeatureExtractor"
    cut_by: ClassVar[str] = "--max-seconds"
    medium: ClassVar[str] = AUDIO
    input_names: ClassVar[tuple[str, ...]] = (AUDIO,)
    usual_names: ClassVar[tuple[tuple[str, ...], ...]] = AUDIO_NAMES
    feature_type: ClassVar[type] = datasets.Audio
    precedence: ClassVar[int] = 20

    max_seconds: float = MAX_SECONDS

    @classmethod
    def fits(cls, feature: Any) -> bool:
        """See `holds_recordings`."""
        return holds_recordings(feature)

    def load_model(self, settings: ModelSettings, *, seed: int) -> BaseModel:
        """See `Task.load_model` and `without_random_masks`."""
        return without_random_masks(super().load_model(settings, seed=seed))

    def features(self, base: BaseModel, rows: Dataset, columns: Columns, *, training: bool) -> Features:
        """See `MediaClassification.features`. Every recording is read once for its length.

        Raises:
            UsageError: a recording cannot be read; names the row and, if it has one, the file.
        """
        features = super().features(base, rows, columns, training=training)
        seconds = recording_seconds(features)
        lengths = np.minimum(seconds, self.max_seconds) * base.processor.sampling_rate
        return replace(features, lengths=lengths.astype(np.int64), truncated=int((seconds > self.max_seconds).sum()))

    def collate(self, base: BaseModel, features: Features, indices: Sequence[int], *, training: bool) -> Batch:
        """Inputs as `extracted` makes them, and as target `labels`, `(batch,)`.

        Raises:
            UsageError: a recording cannot be read; names the row and, if it has one, the file.
        """
        inputs = extracted(base.processor, features, indices, self.max_seconds)
        return Batch(inputs, features.targets(indices), len(indices))
