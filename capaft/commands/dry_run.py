"""`capaft train --dry-run`: the plan of a run, without running it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from capaft.adapter.file.encoding import DTYPE_BYTES, encoded_layout
from capaft.adapter.file.path_templates import path_templates
from capaft.adapter.install import attach_plan
from capaft.config.sources import dump_settings
from capaft.config.train_config import TrainConfig
from capaft.methods.stack import canonical_method
from capaft.training import batches
from capaft.training.accelerator import accelerator_for
from capaft.training.memory import estimate_peak_memory
from capaft.training.optimizer import check_optimizer
from capaft.training.parallel.sharding import sharding_requested
from capaft.training.record.run_directory import choose_directory
from capaft.training.setup.job import Job
from capaft.training.setup.predecessor import with_predecessor
from capaft.training.setup.prepare import prepare_job
from capaft.training.setup.resolved_run import chosen_settings
from capaft.training.setup.settled import settled_config

MOST_TEMPLATES = 8
"""Templates of sites that the summary shows at most."""


@dataclass(frozen=True)
class DryRun:
    """The plan of a run.

    Attributes:
        output: the directory that it would write.
        config: its settings as YAML, every choice filled in.
        sites: canonical paths of the adapted sites.
        adapter_parameters: trainable parameters of the adapter.
        head_parameters: trainable parameters of the model's own, mostly of the head.
        trainable_parameters: both together.
        tensor_bytes: size of the adapter file without its header.
        train_examples: number of training examples.
        validation_examples: number of validation examples.
        estimated_peak_memory_bytes: of each process; None if it cannot be estimated.
    """

    output: str
    config: str
    sites: list[str]
    adapter_parameters: int
    head_parameters: int
    trainable_parameters: int
    tensor_bytes: int
    train_examples: int
    validation_examples: int
    estimated_peak_memory_bytes: int | None


def describe_run(config: TrainConfig, say: Callable[[str], None], labels: Mapping[str, str] | None = None) -> DryRun:
    """Plan a run: its output directory, data, model, sites and sizes. Nothing is written.

    Args:
        config: the resolved settings.
        say: called with a line for each decision worth reading.
        labels: by name of each setting that the user set, the user's name for it; None counts those that are not the
            default.

    Raises:
        UsageError: something cannot be used as given.
    """
    check_optimizer(config.optimizer)
    sharding_requested()
    accelerator_for(config)
    config, predecessor = with_predecessor(config, chosen_settings(config, labels), say)
    directory = choose_directory(
        config.output, canonical_method(config.method), overwrite=config.overwrite, resume=config.resume
    )
    job = prepare_job(config, say, labels, predecessor)
    return DryRun(
        output=str(directory.path),
        config=dump_settings(settled_config(config, job)),
        sites=[site.path for site in job.plan.sites],
        adapter_parameters=job.adapter_parameters,
        head_parameters=job.head_parameters,
        trainable_parameters=job.adapter_parameters + job.head_parameters,
        tensor_bytes=_tensor_bytes(config, job),
        train_examples=job.train.examples,
        validation_examples=job.validation.examples,
        estimated_peak_memory_bytes=_peak_memory(config, job),
    )


def _tensor_bytes(config: TrainConfig, job: Job) -> int:
    """Bytes of the tensors that the adapter file would hold."""
    parameters = job.base.named_parameters()
    shapes = {f"head:{name}": tuple(parameters[name].shape) for name in job.plan.trained}
    if job.plan.head.count:
        shapes["head"] = (job.plan.head.count,)
    if job.plan.stack.host:
        shapes["adapter"] = (job.adapter_parameters,)
    layouts = (encoded_layout(name, shape, config.save_dtype) for name, shape in shapes.items())
    stored = (entry for layout in layouts for entry in layout.values())
    return sum(DTYPE_BYTES[dtype] * math.prod(shape) for dtype, shape in stored)


def _peak_memory(config: TrainConfig, job: Job) -> int | None:
    """Estimated peak memory of training in each process, or None where it cannot be estimated."""
    base, task = job.base, job.task
    attach_plan(base.model, job.plan, dropout=config.dropout, in_place=True)
    base.model.train()
    lengths = job.train.lengths
    order = batches.training_batches(lengths, config.batch_size, config.seed, 0)
    largest = max(order, key=lambda indices: len(indices) * int(lengths[indices].max()))
    parts = batches.micro_batches(largest, 0, config.processes, config.micro_batch_size)
    batch = task.collate(base, job.train, parts[0][0], training=True)
    return estimate_peak_memory(
        base.model,
        batch,
        lambda outputs, targets: task.loss(outputs, targets, config.label_smoothing) / max(batch.terms, 1),
        optimizer=config.optimizer,
        autocast={"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.precision),
        accumulates=len(parts) > 1,
        evaluated=[task.collate(base, job.validation, rows, training=False) for rows in _evaluated(config, job)],
        device=torch.device("cuda") if torch.cuda.is_available() else None,
    )


def _evaluated(config: TrainConfig, job: Job) -> list[list[int]]:
    """The evaluation batches that may take most memory: the longest, and those of most tokens and of most logits."""
    lengths, logits = job.validation.lengths, job.task.logits(job.base, job.validation)
    made = batches.evaluation_batches(lengths, config.eval_batch_size, logits)
    candidates = made[:1]
    for size in [lengths] if logits is None else [lengths, logits]:
        sizes = [len(batch) * int(size[batch].max()) for batch in made]
        candidates.append(made[sizes.index(max(sizes))])
    return [batch for at, batch in enumerate(candidates) if batch not in candidates[:at]]


def dry_run_text(plan: DryRun) -> str:
    """The plan as lines for people, no more than a screen holds."""
    peak = plan.estimated_peak_memory_bytes
    # The error of the measured cases, which docs/log.md lists.
    error = "" if torch.cuda.is_available() else ", within a quarter on a CPU"
    memory = (
        "cannot be estimated for this model" if peak is None else f"about {peak / 2**20:,.0f} MiB at its peak{error}"
    )
    return "\n".join(
        [
            f"would write {plan.output}; nothing was trained or written",
            f"examples   {plan.train_examples:,} to train on, {plan.validation_examples:,} to validate on",
            f"sites      {_sites_text(plan.sites)}",
            f"trainable  {plan.trainable_parameters:,} parameters: {plan.adapter_parameters:,} of the adapter, "
            f"{plan.head_parameters:,} of the head",
            f"file       {plan.tensor_bytes:,} bytes and a header under 2 KB",
            f"memory     {memory}",
            "next: the same command without --dry-run, which trains, or with --print-config, which shows every setting",
        ]
    )


def _sites_text(sites: Sequence[str]) -> str:
    """The number of sites and templates of their paths, as adapter files have them."""
    if not sites:
        return "none"
    templates = path_templates(sites)
    others = f" and {len(templates) - MOST_TEMPLATES} more forms" if len(templates) > MOST_TEMPLATES else ""
    return f"{len(sites)}: {', '.join(templates[:MOST_TEMPLATES])}{others}"
