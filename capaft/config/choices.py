"""What a setting can be, where that is a word of several: once, and without a heavy import."""

from __future__ import annotations

import pkgutil
from pathlib import Path

# Told by the files' names, since importing the tasks would import torch.
TASKS: tuple[str, ...] = tuple(
    sorted(
        module.name.replace("_", "-")
        for module in pkgutil.iter_modules([str(Path(__file__).parents[1] / "tasks")])
        if not module.ispkg
    )
)
"""The tasks: every file of `capaft/tasks/`."""
