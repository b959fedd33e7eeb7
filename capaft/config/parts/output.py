"""Settings of the files that a run leaves."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from capaft.config.choices import SaveDtype
from capaft.config.ranges import at_least
from capaft.config.settings import Settings, setting

_setting = partial(setting, panel="Output")


@dataclass(frozen=True)
class OutputSettings(Settings):
    """Settings of the files that a run leaves."""

    output: str | None = _setting(
        None, "Directory of the run (default: the next free runs/<method>-<n>).", metavar="dir"
    )
    checkpoint_seconds: float = _setting(
        60.0, "Seconds between checkpoints; every evaluation writes one too.", check=at_least(0)
    )
    resume: bool = _setting(False, "Resume the run in --output from its last checkpoint, or start it.")
    tracker: tuple[str, ...] | None = _setting(
        None,
        "Trackers to log to, such as tensorboard, wandb or others of Accelerate (default: none).",
        metavar="name,...",
    )
    save_dtype: SaveDtype = _setting("float32", "Number format of the adapter file.")
    overwrite: bool = _setting(False, "Replace the run in the output directory.")
