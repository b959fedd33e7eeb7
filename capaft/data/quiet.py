"""Loading data without the libraries' progress bars."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import datasets
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Turn off the progress bars of `datasets` and the hub's client, and restore them."""
    before = datasets.are_progress_bars_disabled(), are_progress_bars_disabled()
    datasets.disable_progress_bars()
    disable_progress_bars()
    try:
        yield
    finally:
        if not before[0]:
            datasets.enable_progress_bars()
        if not before[1]:
            enable_progress_bars()
