"""The process around a run that a program starts: what the run uses of it is put back as it was."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import transformers

from capaft.data.quiet import without_progress_bars
from capaft.training.placement import keeping_accelerate


@contextmanager
def leaving_no_trace() -> Iterator[None]:
    """Puts back what a run changes in its process: random generators, Accelerate's state, the libraries' reports.

    A run trains whatever the caller has turned off, such as gradients.
    """
    with _same_generators(), keeping_accelerate(), quiet_libraries(), torch.inference_mode(False), torch.enable_grad():
        yield


@contextmanager
def _same_generators() -> Iterator[None]:
    states = np.random.get_state(), random.getstate()
    try:
        # Those of torch, on every device that there is.
        with torch.random.fork_rng():
            yield
    finally:
        np.random.set_state(states[0])
        random.setstate(states[1])


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keeps the libraries' own reports off the screen."""
    verbosity, has_bars = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        with without_progress_bars(), warnings.catch_warnings():
            # What these have to say, as of scores over one class, is about capaft's calls and not for its users.
            warnings.filterwarnings("ignore", module=r"(sklearn|scipy|torch\._weights_only_unpickler)\b")
            yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        if has_bars:
            transformers.logging.enable_progress_bar()
