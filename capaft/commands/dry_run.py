"""Everything that a run decides, without running it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from capaft.adapter.attach import attach_plan
from capaft.adapter.file.encoding import DTYPE_BYTES, encoded_layout
from capaft.config.settings import dump_settings
from capaft.config.train_config import TrainConfig
from capaft.methods.stack import canonical_method
from capaft.training import batches
from capaft.training.accelerator import accelerator_for
from capaft.training.loop import set_training_mode
from capaft.training.memory import estimate_peak_memory
from capaft.training.optimizer import check_optimizer
from capaft.training.parallel.sharding import sharding_requested
from capaft.training.record.run_directory import choose_directory
from capaft.training.setup.job import Job, prepare_job, settled_config


def describe_run(config: TrainConfig, say: Callable[[str], None]) -> dict[str, Any]:
    """Decide a run: its output directory, data, model, sites and sizes. Nothing is written.

    Raises:
        UsageError: something cannot be used as given.
    """
    check_optimizer(config.optimizer)
    sharding_requested()
    accelerator_for(config)
    run = choose_directory(
        config.output, canonical_method(config.method), overwrite=config.overwrite, resume=config.resume
    )
    decided = prepare_job(config, say)
    own = decided.base.named_parameters()
    tensors = {f"head:{name}": tuple(own[name].shape) for name in decided.plan.trained}
    if decided.plan.head.count:
        tensors["head"] = (decided.plan.head.count,)
    if decided.plan.stack.host:
        tensors["adapter"] = (decided.adapter_numbers,)
    stored = [
        entry for name, shape in tensors.items() for entry in encoded_layout(name, shape, config.save_dtype).values()
    ]
    return {
        "output": str(run.path),
        "config": dump_settings(settled_config(config, decided)),
        "sites": [site.path for site in decided.plan.sites],
        "adapter_parameters": decided.adapter_numbers,
        "head_parameters": decided.own_numbers,
        "trainable_parameters": decided.adapter_numbers + decided.own_numbers,
        "tensor_bytes": sum(DTYPE_BYTES[dtype] * math.prod(shape) for dtype, shape in stored),
        "train_examples": decided.train.examples,
        "validation_examples": decided.validation.examples,
        "estimated_peak_memory_bytes": _peak_memory(config, decided),
    }


def _peak_memory(config: TrainConfig, decided: Job) -> int | None:
    """What training would need at its peak in each process, or None where that cannot be told."""
    base, task = decided.base, decided.task
    attach_plan(base.model, decided.plan, dropout=config.dropout)
    set_training_mode(base.model)
    lengths = decided.train.lengths
    order = batches.training_batches(lengths, config.batch_size, config.seed, 0)
    largest = max(order, key=lambda indices: len(indices) * int(lengths[indices].max()))
    parts = batches.micro_batches(largest, 0, config.processes, config.micro_batch_size)
    batch = task.collate(base, decided.train, parts[0][0], training=True)
    scored = batches.evaluation_batches(decided.validation.lengths, config.eval_batch_size)[0]
    return estimate_peak_memory(
        base.model,
        batch,
        lambda outputs, targets: task.loss(outputs, targets, config.label_smoothing) / max(batch.terms, 1),
        optimizer=config.optimizer,
        autocast={"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.precision),
        accumulates=len(parts) > 1,
        evaluated=task.collate(base, decided.validation, scored, training=False),
        device=torch.device("cuda") if torch.cuda.is_available() else None,
    )


def dry_run_text(decided: dict[str, Any]) -> str:
    """The decisions as lines for people: the configuration, the sites, the sizes."""
    peak = decided["estimated_peak_memory_bytes"]
    return "\n".join(
        [
            decided["config"],
            f"would write {decided['output']}",
            f"{len(decided['sites'])} sites: {', '.join(decided['sites']) or 'none'}",
            f"{decided['trainable_parameters']:,} trained numbers ({decided['adapter_parameters']:,} of the adapter, "
            f"{decided['head_parameters']:,} of the head), {decided['tensor_bytes']:,} bytes and a header under 2 KB",
            f"peak memory: {'cannot be told for this model' if peak is None else f'about {peak / 2**20:,.0f} MiB'}",
        ]
    )
