"""Audio classification: a recording to one of several classes."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import datasets
import numpy as np
import torch
from numpy.typing import NDArray

from capaft.config.choices import MAX_SECONDS
from capaft.config.parts.model import ModelSettings
from capaft.data.media.decode import open_audio
from capaft.model.load import BaseModel
from capaft.tasks.base.columns import Columns
from capaft.tasks.base.features import Batch, Features
from capaft.tasks.media.classification import MediaClassification, open_media

if TYPE_CHECKING:
    from datasets import Dataset

Waveform = NDArray[np.float32]

# Shorter recordings are filled up with silence: wav2vec 2.0 cannot make a single frame of less than 25 ms.
_LEAST_SECONDS = 0.1
# Recordings read at a time for their lengths.
_READ = 100


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
    medium: ClassVar[str] = "audio"
    usual_names: ClassVar[tuple[tuple[str, ...], ...]] = (
        ("audio", "recording", "sound", "speech"),
        ("audiopath", "audiofile", "filename", "filepath", "file", "path"),
    )
    feature_type: ClassVar[type] = datasets.Audio
    precedence: ClassVar[int] = 20

    max_seconds: float = MAX_SECONDS

    @classmethod
    def fits(cls, feature: Any) -> bool:
        """Recordings, files or their paths, and arrays of samples with their rate."""
        if isinstance(feature, datasets.Value):
            return feature.dtype.endswith(("string", "binary"))
        if isinstance(feature, dict):
            return bool(feature.keys() & {"bytes", "path", "array"})
        return isinstance(feature, datasets.Audio)

    def load_model(self, settings: ModelSettings, *, seed: int) -> BaseModel:
        """See `Task.load_model`.

        Wav2vec 2.0 and its kin mask stretches (SpecAugment) and skip layers (LayerDrop) in training; both are switched
        off. The masks come from numpy's generator, which no seed of a run reaches, and fail on short recordings. The
        adapter of a skipped layer would not learn.
        """
        loaded = super().load_model(settings, seed=seed)
        for name, value in {"apply_spec_augment": False, "layerdrop": 0.0}.items():
            if hasattr(loaded.model.config, name):
                setattr(loaded.model.config, name, value)
        return loaded

    def features(self, base: BaseModel, rows: Dataset, columns: Columns, *, training: bool) -> Features:
        """See `MediaClassification.features`. Every recording is read once for its length.

        Raises:
            UsageError: a recording cannot be read; names the row and, if it has one, the file.
        """
        features = super().features(base, rows, columns, training=training)
        seconds: list[float] = []
        for first in range(0, len(features), _READ):
            indices = range(first, min(first + _READ, len(features)))
            recordings = open_media(features, self.medium, indices, open_audio)
            seconds += [len(samples) / rate for samples, rate in recordings]
        rate = base.processor.sampling_rate
        lengths = np.minimum(np.array(seconds), self.max_seconds) * rate
        truncated = sum(length > self.max_seconds for length in seconds)
        return replace(features, lengths=lengths.astype(np.int64), truncated=truncated)

    def collate(self, base: BaseModel, features: Features, indices: Sequence[int], *, training: bool) -> Batch:
        """Inputs as the feature extractor makes them: `input_values` `(batch, samples)` or `input_features`.

        Padded to the longest, with an attention mask where the checkpoint was trained with one, or to the one length
        that the model takes. As target `labels`, `(batch,)`.

        Raises:
            UsageError: a recording cannot be read; names the row and, if it has one, the file.
        """
        rate = base.processor.sampling_rate
        recordings = [
            prepared(samples, file_rate, rate, self.max_seconds)
            for samples, file_rate in open_media(features, self.medium, indices, open_audio)
        ]
        inputs = base.processor(recordings, sampling_rate=rate, return_tensors="pt", **_padding(base.processor))
        return Batch(dict(inputs), {"labels": torch.from_numpy(features.references[list(indices)])}, len(indices))


def prepared(samples: Waveform, rate: int, new_rate: int, max_seconds: float) -> Waveform:
    """The first seconds of a recording at a new sampling rate, `(samples,)`.

    Resampled by a polyphase filter: zero phase, Kaiser window (Crochiere and Rabiner 1983, "Multirate digital signal
    processing", chapter 2).
    """
    from scipy.signal import resample_poly

    samples = samples[: max(1, int(max_seconds * rate))]
    if rate != new_rate:
        common = math.gcd(rate, new_rate)
        samples = resample_poly(samples, new_rate // common, rate // common).astype(np.float32)
    return np.pad(samples, (0, max(0, int(_LEAST_SECONDS * new_rate) - len(samples))))


def _padding(extractor: Any) -> dict[str, Any]:
    """Arguments that make an extractor pad to the longest, unless it pads to a length of its own (Whisper's does)."""
    padding = inspect.signature(type(extractor).__call__).parameters.get("padding")
    return {} if padding is not None and padding.default == "max_length" else {"padding": True}
