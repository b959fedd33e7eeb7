"""Everything that a run decides, without running it."""

from __future__ import annotations

import math
from typing import Any

from rich.console import Console

from capaft import job, run_directory
from capaft.config import TrainConfig
from capaft.methods.stack import canonical
from capaft.settings import dump
from capaft.storage import DTYPE_BYTES, layout


def describe(config: TrainConfig, console: Console) -> dict[str, Any]:
    """Decide a run: its output directory, data, model, sites and sizes. Nothing is written.

    Raises:
        UsageError: something cannot be used as given.
    """
    run = run_directory.choose(
        config.output, canonical(config.method), overwrite=config.overwrite, resume=config.resume
    )
    decided = job.prepare(config, lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True))
    own = decided.base.named_parameters()
    tensors = {f"head:{name}": tuple(own[name].shape) for name in decided.plan.trained}
    if decided.plan.head.numbers:
        tensors["head"] = (decided.plan.head.numbers,)
    if decided.plan.stack.host:
        tensors["adapter"] = (decided.adapter_numbers,)
    stored = [entry for name, shape in tensors.items() for entry in layout(name, shape, config.save_dtype).values()]
    return {
        "output": str(run.path),
        "config": dump(job.settled(config, decided)),
        "sites": [site.path for site in decided.plan.sites],
        "adapter_parameters": decided.adapter_numbers,
        "head_parameters": decided.own_numbers,
        "trainable_parameters": decided.adapter_numbers + decided.own_numbers,
        "tensor_bytes": sum(DTYPE_BYTES[dtype] * math.prod(shape) for dtype, shape in stored),
        "train_examples": len(decided.train),
        "validation_examples": len(decided.validation),
    }


def text(decided: dict[str, Any]) -> str:
    """The decisions as lines for people: the configuration, the sites, the sizes."""
    return "\n".join(
        [
            decided["config"],
            f"would write {decided['output']}",
            f"{len(decided['sites'])} sites: {', '.join(decided['sites']) or 'none'}",
            f"{decided['trainable_parameters']:,} trained numbers ({decided['adapter_parameters']:,} of the adapter, "
            f"{decided['head_parameters']:,} of the head), {decided['tensor_bytes']:,} bytes and a header under 2 KB",
        ]
    )
