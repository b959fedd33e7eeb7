"""Recordings as models take them: resampled, cut, filled up."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_media import RATE, tone

from capaft.tasks.media.recordings import prepared


@pytest.mark.parametrize(("rate", "new_rate"), [(44100, 16000), (8000, 16000), (11025, 16000), (16000, 4000)])
def test_resampling_keeps_a_sine(rate: int, new_rate: int) -> None:
    resampled = prepared(tone(440, 1.0, rate), rate, new_rate, 10.0)
    assert resampled.shape == (new_rate,)
    assert resampled.dtype == np.float32
    middle = slice(new_rate // 10, -new_rate // 10)
    assert np.abs(resampled - tone(440, 1.0, new_rate))[middle].max() < 2e-3
    spectrum = np.abs(np.fft.rfft(resampled * np.hanning(new_rate)))
    assert spectrum.argmax() == 440


def test_resampling_takes_out_what_the_lower_rate_cannot_hold() -> None:
    assert np.abs(prepared(tone(7000, 1.0, 16000), 16000, 4000, 10.0)).max() < 0.02


def test_recordings_are_cut_at_the_end() -> None:
    samples = tone(300, 2.0)
    assert np.array_equal(prepared(samples, RATE, RATE, 0.5), samples[: RATE // 2])
    assert prepared(tone(300, 2.0, 44100), 44100, 16000, 0.5).shape == (8000,)
    assert np.array_equal(prepared(samples, RATE, RATE, 10.0), samples)


def test_the_shortest_recordings_are_filled_up_with_silence() -> None:
    filled = prepared(np.ones(3, np.float32), RATE, RATE, 10.0)
    assert filled.tolist() == [1, 1, 1, *[0] * (RATE // 10 - 3)]
