"""The device, precision, loss scaling and trackers of a run, as Accelerate sets them up."""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs, ProjectConfiguration
from torch import nn

from capaft.config.train_config import TrainConfig
from capaft.support.errors import TrainingError, UsageError, one_line

# However short the timeout, processes that share a busy machine start this far apart.
_MEETING_SECONDS = 60


def accelerator_for(config: TrainConfig) -> Accelerator:
    """The accelerator of a run.

    Raises:
        UsageError: the precision, the base's dtype or a tracker is not available here.
        TrainingError: another process of the run did not start in time.
    """
    if config.precision == "fp16" and not torch.cuda.is_available():
        raise UsageError("--precision fp16 needs an accelerator; choose bf16 or fp32")
    if config.base_dtype == "float16" and not torch.cuda.is_available():
        raise UsageError("--base-dtype float16 needs an accelerator; choose bfloat16 or float32")
    options: dict[str, Any] = {"mixed_precision": {"fp32": "no"}.get(config.precision, config.precision)}
    if config.tracker:
        options["log_with"] = _trackers(config.tracker)
        # Accelerate wants a directory here; the run sets the real one before trackers start.
        options["project_config"] = ProjectConfiguration(logging_dir="trackers")
    processes, devices = int(os.environ.get("WORLD_SIZE", "1")), torch.cuda.device_count()
    if int(os.environ.get("LOCAL_RANK", "0")) >= max(devices, 1) and devices:
        raise UsageError(f"{processes} processes need a device each, but there are only {devices}; lower --processes")
    # A launcher's setting for accumulation is ignored: a step's gradients add up to the batch's by themselves.
    options["gradient_accumulation_plugin"] = GradientAccumulationPlugin(num_steps=1)
    meeting = max(config.timeout, _MEETING_SECONDS)
    options["kwargs_handlers"] = [InitProcessGroupKwargs(timeout=timedelta(seconds=meeting))]
    # Another run in this process may have had another precision; the process group, if there is one, stays.
    AcceleratorState._reset_state()
    try:
        return Accelerator(**options)
    except (ImportError, ValueError) as error:
        raise UsageError(f"Accelerate cannot be set up: {one_line(error)}") from None
    except torch.distributed.DistError as error:
        raise TrainingError(
            f"the {processes} processes of this run did not meet within {meeting} s (--timeout); start it "
            f"again ({one_line(error)})"
        ) from None


def device_name() -> str:
    """The name of the accelerator that a run would use, or "cpu"."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def move_model(model: Any, device: torch.device) -> nn.Module:
    """The model, on that device; quantised weights stay where they were loaded, since they cannot be moved."""
    placed: nn.Module = model if getattr(model, "is_quantized", False) else model.to(device)
    return placed


def _trackers(names: tuple[str, ...]) -> list[str]:
    """The trackers by name.

    Raises:
        UsageError: Accelerate does not know one, or its package is not installed.
    """
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    names_known = sorted(str(name) for name in LOGGER_TYPE_TO_CLASS)
    installed = {str(name) for name in get_available_trackers()}
    for name in names:
        if name not in names_known:
            raise UsageError(f"--tracker {name}: no tracker is called that; choose from {', '.join(names_known)}")
        if name not in installed:
            raise UsageError(f"--tracker {name} needs its package; pip install {name}")
    return list(names)


def peak_memory() -> int:
    """Highest memory use so far in bytes: of the accelerator, or of the process on a CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # Windows has none.
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
