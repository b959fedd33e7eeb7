"""Recordings as models take them: read, resampled, cut, and padded by the checkpoint's feature extractor."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray

from capaft.data.media.decode import open_audio
from capaft.model.load import BaseModel
from capaft.tasks.base.features import Features
from capaft.tasks.media.files import open_media

AUDIO = "audio"
AUDIO_NAMES = (
    ("audio", "recording", "sound", "speech"),
    ("audiopath", "audiofile", "filename", "filepath", "file", "path"),
)
"""Usual names of columns of recordings, as `find_column` takes them."""

Waveform = NDArray[np.float32]

# Shorter recordings are filled up with silence: wav2vec 2.0 cannot make a single frame of less than 25 ms.
_LEAST_SECONDS = 0.1
# Recordings read at a time for their lengths.
_READ = 100


def holds_recordings(feature: Any) -> bool:
    """True if a column can hold recordings: files, their paths, or arrays of samples with their rate."""
    if isinstance(feature, datasets.Value):
        return feature.dtype.endswith(("string", "binary"))
    if isinstance(feature, dict):
        return bool(feature.keys() & {"bytes", "path", "array"})
    return isinstance(feature, datasets.Audio)


def without_random_masks(loaded: BaseModel) -> BaseModel:
    """The model without stretches masked (SpecAugment) and layers skipped (LayerDrop) in training.

    The masks of wav2vec 2.0 and its kin come from numpy's generator, which no seed of a run reaches, and fail on short
    recordings. The adapter of a skipped layer would not learn.
    """
    for name, value in {"apply_spec_augment": False, "layerdrop": 0.0}.items():
        if hasattr(loaded.model.config, name):
            setattr(loaded.model.config, name, value)
    return loaded


def recording_seconds(features: Features) -> NDArray[np.float64]:
    """The length of each recording, `(features,)`, in seconds.

    Raises:
        UsageError: a recording cannot be read; names the row and, if it has one, the file.
    """
    seconds: list[float] = []
    for first in range(0, len(features), _READ):
        indices = range(first, min(first + _READ, len(features)))
        seconds += [len(samples) / rate for samples, rate in open_media(features, AUDIO, indices, open_audio)]
    return np.array(seconds)


def extracted(extractor: Any, features: Features, indices: Sequence[int], max_seconds: float) -> dict[str, Any]:
    """The inputs that a feature extractor makes of recordings: `input_values` `(batch, samples)` or `input_features`.

    Padded to the longest, with an attention mask where the checkpoint was trained with one, or to the one length that
    the model takes.

    Raises:
        UsageError: a recording cannot be read; names the row and, if it has one, the file.
    """
    rate = extractor.sampling_rate
    recordings = [
        prepared(samples, file_rate, rate, max_seconds)
        for samples, file_rate in open_media(features, AUDIO, indices, open_audio)
    ]
    return dict(extractor(recordings, sampling_rate=rate, return_tensors="pt", **_padding(extractor)))


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
