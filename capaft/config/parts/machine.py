"""What a run computes with."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from capaft.config.choices import Precision
from capaft.config.ranges import at_least
from capaft.config.settings import Settings, setting

_setting = partial(setting, panel="Machine")


@dataclass(frozen=True)
class MachineSettings(Settings):
    """What a run computes with."""

    precision: Precision = _setting("fp32", "What products are computed in; trained numbers stay float32.")
    head_cache: bool = _setting(
        True, "Take a new head's start from the Hugging Face cache if an earlier run fitted the same, or keep it there."
    )
    gradient_checkpointing: bool = _setting(
        False, "Compute activations again in the backward instead of keeping them: slower, much less memory."
    )
    processes: int = _setting(
        1, "Processes to train in, each with a device of its own if there are any.", check=at_least(1)
    )
