"""The lines that describe a job before it trains: model, method, rates, and settings that have no effect."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from capaft.config.train_config import TrainConfig
from capaft.support.counting import counted
from capaft.support.listing import listed
from capaft.training.setup.carried import Carried
from capaft.training.setup.idle import idle_settings
from capaft.training.setup.job import Job


def describe_job(
    job: Job, config: TrainConfig, say: Callable[[str], None], labels: Mapping[str, str] | None = None
) -> None:
    """Describe a job in lines.

    Args:
        job: the job.
        config: the settings that it was made from.
        say: called with each line.
        labels: by name of each setting that the user set, the user's name for it; None counts those
            that are not the default.
    """
    for line in (*_described(job, config), *(f"       warning: {line}" for line in _warnings(job, config, labels))):
        say(line)


def _described(job: Job, config: TrainConfig) -> Iterator[str]:
    stack, rates = job.plan.stack, job.rates
    total = sum(parameter.numel() for parameter in job.base.named_parameters().values())
    state = "all trained" if stack.method == "full" else "frozen"
    yield f"model  {job.base.base.name}: {counted(total, 'weight')}, {state}"
    if stack.host:
        options = stack.options_text()
        yield (
            f"method {stack.method}{f' ({options})' if options else ''} on {counted(len(job.plan.sites), 'site')}: "
            f"{counted(job.adapter_parameters, 'trainable parameter')}"
        )
    else:
        yield f"method {stack.method}"
    if stack.method != "full" and job.head_parameters:
        yield f"       and {job.head_parameters:,} of the head"
    if job.carried:
        yield from _carried(job.carried)
    of_head = f", {rates.head_lr:g} for the head" if job.base.head and rates.head_lr != rates.lr else ""
    steps, examples = counted(rates.steps, "step"), counted(config.batch_size, "example")
    yield f"rate   {rates.lr:g} at its peak{of_head}; {steps} of {examples}"


def _carried(carried: Carried) -> Iterator[str]:
    """The lines about the adapter that a job carries on: what is taken over, and which labels are new."""
    predecessor = carried.predecessor
    dtype = predecessor.file.header.save_dtype
    stored = f", dequantised from {dtype}" if dtype in ("int8", "int4") else ""
    yield f"start  from the trained parameters of {predecessor.name}{stored}"
    if not carried.has_head:
        cause = (
            "none of its labels is among the data's" if carried.new and predecessor.labels else "it is of another task"
        )
        yield f"       but its head, which starts anew: {cause}"
    elif carried.known and not predecessor.labels:
        yield f"       whose outputs have no names, and are taken for {listed(carried.known)} in this order"
    elif carried.new and predecessor.labels:
        yield f"       and the outputs of {counted(len(carried.known), 'label')}; new: {listed(carried.new)}"


def _warnings(job: Job, config: TrainConfig, labels: Mapping[str, str] | None) -> Iterator[str]:
    stack = job.plan.stack
    if stack.k:
        groups = (group for groups in job.plan.groups().values() for group in groups)
        sizes = [factor.size for factor, _ in groups if stack.coefficients(factor)]
        smallest = min(sizes, default=max(stack.k))
        if max(stack.k) > smallest and stack.scope == "site":
            dense = stack.method.replace("+nola", "")
            yield f"k {max(stack.k)} is more than the {smallest} entries of a factor; {dense} is smaller"
    if stack.copies and stack.copies.copies > 1 and stack.copies.density == 1:
        yield f"--density {stack.copies.density:g} makes all {stack.copies.copies} copies alike: the rank stays"
    yield from idle_settings(job, config, labels)
