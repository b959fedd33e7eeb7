"""The lines that describe a job before it trains: model, method, rates, and settings that have no effect."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields

from capaft.config.settings import flag_of
from capaft.config.sources import NO_LABELS
from capaft.config.train_config import TASK_OPTIONS, TrainConfig
from capaft.methods.stack import known_options, stack_options
from capaft.training.setup.fitted_head import can_fit_head
from capaft.training.setup.job import Job


def describe_job(
    job: Job, config: TrainConfig, say: Callable[[str], None], labels: Mapping[str, str] = NO_LABELS
) -> None:
    """Describe a job in lines.

    Args:
        job: the job.
        config: the settings that it was made from.
        say: called with each line.
        labels: by name of each setting that the user set, the user's name for it.
    """
    for line in (*_described(job, config), *(f"       warning: {line}" for line in _warnings(job, config))):
        say(line)


def _described(job: Job, config: TrainConfig) -> Iterator[str]:
    stack, rates = job.plan.stack, job.rates
    total = sum(parameter.numel() for parameter in job.base.named_parameters().values())
    yield f"model  {job.base.base.name}: {total:,} weights, {'all trained' if stack.method == 'full' else 'frozen'}"
    if stack.host:
        options = ", ".join(
            f"{name} {','.join(map(str, value)) if isinstance(value, list) else value}"
            for name, value in stack.record().items()
            if name != "method" and value not in (False, None, [], "site", "none")
        )
        yield (
            f"method {stack.method} ({options}) on {len(job.plan.sites)} sites: "
            f"{job.adapter_parameters:,} trainable parameters"
        )
    else:
        yield f"method {stack.method}"
    if stack.method != "full" and job.head_parameters:
        yield f"       and {job.head_parameters:,} of the head"
    of_head = f", {rates.head_lr:g} for the head" if job.base.head and rates.head_lr != rates.lr else ""
    yield f"rate   {rates.lr:g} at its peak{of_head}; {rates.steps} steps of {config.batch_size} examples"


def _warnings(job: Job, config: TrainConfig) -> Iterator[str]:
    stack = job.plan.stack
    if stack.k:
        groups = (group for groups in job.plan.groups().values() for group in groups)
        sizes = [factor.size for factor, _ in groups if stack.coefficients(factor)]
        smallest = min(sizes, default=max(stack.k))
        if max(stack.k) > smallest and stack.scope == "site":
            dense = stack.method.replace("+nola", "")
            yield f"k {max(stack.k)} is more than the {smallest} entries of a factor; {dense} is smaller"
    changed = [field.name for field in fields(config) if getattr(config, field.name) != field.default]
    of_other_methods = known_options() - stack_options(stack.method)
    of_other_tasks = TASK_OPTIONS - {field.name for field in fields(job.task)}
    for name in changed:
        if name in of_other_methods or name in of_other_tasks:
            chosen = stack.method if name in of_other_methods else job.task.name
            yield f"{flag_of(name)} has no effect with {chosen} and is ignored"
    if not job.base.head and config.head != "full":
        yield f"--head {config.head} has no effect: {job.task.name} makes no new head"
    if config.baseline and not can_fit_head(job.task, job.train):
        yield f"--baseline has no effect: no linear head can be fitted for {job.task.name}"
