"""Where a finished adapter runs, and in which precision: as Accelerate would have it, and without a trace of it.

A program may open several adapters, and may train with an accelerator of its own. All accelerators of a process share
one state, and the last one's precision would be that of all.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState

from capaft.config.choices import BaseDtype, Precision
from capaft.config.train_config import TrainConfig
from capaft.training.accelerator import accelerator_for
from capaft.training.record.saved_run import SavedRun

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Placement:
    """The place of a model.

    Attributes:
        device: the device.
        dtype: that of the forwards, if it is not the parameters' own.
    """

    device: torch.device
    dtype: torch.dtype | None = None

    @staticmethod
    def of(saved: SavedRun) -> Placement:
        """The place of a finished adapter, in its training's precision unless its base or the machine needs another.

        Args:
            saved: the opened run.

        Raises:
            UsageError: the dtype of the base, or the precision, is not available here.
        """
        config, base_dtype = saved.config or TrainConfig(), saved.settings.base_dtype
        precision = _precision(config.precision, base_dtype)
        with keeping_accelerate():
            wanted = replace(config, tracker=None, precision=precision, base_dtype=base_dtype)
            device = accelerator_for(wanted).device
        return Placement(device, _AUTOCAST.get(precision))

    def autocast(self) -> AbstractContextManager[Any]:
        """A context for forwards."""
        return nullcontext() if self.dtype is None else torch.autocast(self.device.type, self.dtype)


def _precision(precision: Precision, base_dtype: BaseDtype) -> Precision:
    # An adapter that was trained in float16 on an accelerator can be used without one.
    if precision == "fp16" and not torch.cuda.is_available():
        return "bf16"
    # The adapter is in float32; without autocast its products with a base of fewer bits fail.
    if precision == "fp32" and base_dtype != "float32":
        return "bf16"
    return precision


@contextmanager
def keeping_accelerate() -> Iterator[None]:
    """Keeps the state that all accelerators of a process share: the caller may have one of another precision."""
    shared = [state._shared_state for state in (AcceleratorState, GradientState, PartialState)]
    before = [dict(state) for state in shared]
    try:
        yield
    finally:
        for state, values in zip(shared, before, strict=True):
            state.clear()
            state.update(values)
