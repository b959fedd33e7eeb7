"""The conditions of a run, for its results and its card: the adapter's settings, those of training, and the machine."""

from __future__ import annotations

import math
import platform
from importlib.metadata import version
from typing import Any

import capaft
from capaft.config.restarts import parse_restarts
from capaft.config.train_config import TrainConfig
from capaft.training.accelerator import device_name
from capaft.training.setup.job import Job

_PACKAGES = ("torch", "transformers", "accelerate", "datasets")
# Settings of the optimization beside its length and rates.
_OPTIMIZATION = (
    "batch_size",
    "micro_batch_size",
    "optimizer",
    "schedule",
    "warmup",
    "weight_decay",
    "clip",
    "label_smoothing",
    "lora_plus_ratio",
    "dropout",
)


def method_settings(job: Job, config: TrainConfig) -> dict[str, Any]:
    """The adapter's settings, every choice filled in: the options of its method stack, its sites and its head."""
    plan = job.plan
    options = {name: value for name, value in plan.stack.record().items() if name != "method"}
    targets = {name: value for name, value in vars(plan.targets).items() if value}
    head: dict[str, Any] = {"head": config.head} if job.base.head else {}
    if head and config.head == "nola":
        head |= {"head_k": config.head_k}
    saved = {"modules_to_save": config.modules_to_save} if config.modules_to_save else {}
    return {**options, "targets": targets, "sites": len(plan.sites), **head, **saved}


def training_settings(job: Job, config: TrainConfig) -> dict[str, Any]:
    """The settings of training, every choice filled in; `restarts` are the steps where the schedule started anew."""
    per_epoch = math.ceil(len(job.train) / config.batch_size)
    restarts = [restart.step for restart in parse_restarts(config.restarts or ())]
    return {
        "lr": job.rates.lr,
        **({"head_lr": job.rates.head_lr} if job.base.head else {}),
        "planned_steps": job.rates.steps,
        "planned_epochs": round(job.rates.steps / per_epoch, 4),
        **{name: getattr(config, name) for name in _OPTIMIZATION},
        **({"restarts": restarts} if restarts else {}),
        "precision": config.precision,
        "base_dtype": config.base_dtype,
        "save_dtype": config.save_dtype,
    }


def machine() -> dict[str, str]:
    """The device, and the versions of capaft, Python and the packages that train."""
    packages = {name: version(name) for name in _PACKAGES}
    return {"device": device_name(), "capaft": capaft.__version__, "python": platform.python_version(), **packages}
