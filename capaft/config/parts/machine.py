"""Settings of the machine: precision, memory and processes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from capaft.config.choices import Precision
from capaft.config.ranges import TIMEOUT, at_least
from capaft.config.settings import Settings, setting

_setting = partial(setting, panel="Machine")


@dataclass(frozen=True)
class MachineSettings(Settings):
    """Settings of the machine: precision, memory and processes."""

    precision: Precision = _setting("fp32", "Number format of matrix products; trainable parameters stay float32.")
    head_cache: bool = _setting(
        True, "Reuse a fitted head from the Hugging Face cache if an earlier run fitted the same, else keep it there."
    )
    gradient_checkpointing: bool = _setting(
        False, "Recompute activations in the backward pass instead of keeping them: slower, but much less memory."
    )
    processes: int = _setting(1, "Processes to train in, each with its own device if there are any.", check=at_least(1))
    timeout: int = _setting(
        1800,
        "Seconds after which the run ends if one of several processes does not answer.",
        check=TIMEOUT,
    )
