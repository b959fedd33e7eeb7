"""The settings of a job with every open choice filled in, so that a saved run repeats exactly."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from capaft.config.train_config import TrainConfig
from capaft.methods.stack import Stack
from capaft.training.setup.column_hints import column_settings
from capaft.training.setup.job import Job
from capaft.training.setup.selection import with_task_options


def settled_config(config: TrainConfig, job: Job) -> TrainConfig:
    """The settings with every choice filled in that was left to capaft.

    Args:
        config: the settings that the job was made from.
        job: the job.
    """
    columns = column_settings(type(job.task), job.columns)
    return replace(
        with_task_options(settled_method(config, job.plan.stack), job.task),
        task=job.task.name,
        epochs=job.rates.epochs,
        lr=job.rates.lr,
        head_lr=job.rates.head_lr,
        baseline=job.baseline,
        budget=None,
        task_option=tuple(f"{name}={getattr(job.task, name)}" for name in job.task.options_without_flag()) or None,
        text_column=columns.get("text", config.text_column),
        pair_column=columns.get("pair", config.pair_column),
        label_column=columns.get("label", config.label_column),
        target_modules=job.plan.targets.modules or None,
        modules_to_save=config.modules_to_save or (job.carried.modules_to_save if job.carried else None),
    )


def settled_method(config: TrainConfig, stack: Stack) -> TrainConfig:
    """The settings with those of a method stack filled in."""
    options: dict[str, Any] = {"k": stack.k} if stack.k else {}
    foreign: list[str] = []
    for option in stack.host.options() if stack.host else ():
        value = getattr(stack.host, option.name)
        if hasattr(config, option.name):
            options[option.name] = None if value == () else value
        else:
            shown = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            foreign.append(f"{option.name}={shown}")
    return replace(config, method=stack.method, method_option=tuple(foreign) or None, **options)
