"""One run, from its configuration to the files it leaves."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from capaft import card, fitted_head, job, run_directory
from capaft.attach import attach_plan
from capaft.config import TrainConfig
from capaft.files import write_atomically
from capaft.job import Job
from capaft.methods.host import Host
from capaft.methods.stack import canonical
from capaft.settings import dump
from capaft.train import train


def execute(config: TrainConfig, console: Console) -> dict[str, Any]:
    """Train, and write the run directory.

    Returns:
        The results, as `results.json` holds them.

    Raises:
        UsageError: the configuration or the data cannot be used; nothing was written.
        TrainingError: the run could not go on; the best adapter so far is on disk.
    """
    run = run_directory.choose(config.output, canonical(config.method), overwrite=config.overwrite)
    decided = job.prepare(config, lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True))
    adapter_numbers, own_numbers = decided.adapter_numbers, decided.own_numbers
    before = start_head(decided, config, console)
    adapter = attach_plan(decided.base.model, decided.plan, dropout=config.dropout)
    run_directory.clear(run)
    # Where a run went is not part of how to repeat it.
    repeatable = replace(job.settled(config, decided), output=None, overwrite=False)
    write_atomically(run.config, dump(repeatable))
    outcome = train(decided, adapter, config, run, console)
    results = {
        "output": str(run.path),
        "model": decided.base.base.name,
        "data": decided.data,
        "method": decided.plan.stack.method,
        "metric": decided.task.metric,
        "value": outcome.value,
        "baseline": before,
        "trainable_parameters": adapter_numbers + own_numbers,
        "adapter_parameters": adapter_numbers,
        "head_parameters": own_numbers,
        **{key: value for key, value in asdict(outcome).items() if key != "value"},
        "seed": config.seed,
        "labels": list(decided.task.labels),
        "next": _next(run.path, decided),
    }
    write_atomically(run.results, json.dumps(results, indent=2) + "\n")
    write_atomically(run.card, card.write(results, f"capaft train --config {run.config}"))
    return results


def _next(path: Path, decided: Job) -> list[str]:
    """Commands that make sense after a run."""
    host = decided.plan.stack.host
    found = [f"capaft eval {path}"]
    if host is None or not host.unmergeable:
        found.append(f"capaft merge {path} --output {path}/merged")
    if host is not None and type(host).product is not Host.product:
        found.append(f"capaft inspect-rank {path}")
    return found


def start_head(decided: job.Job, config: TrainConfig, console: Console) -> float | None:
    """Fit a head on the frozen base where it is wanted: as the head's start, as the baseline, or as both.

    Returns:
        The baseline's score, or None where it was not asked for.
    """
    if not decided.baseline and (config.head_init == "seeded" or not decided.base.new_head):
        return None
    started = time.perf_counter()
    best, careful = fitted_head.fit(decided.task, decided.base, decided.train, config.eval_batch_size, config.seed)
    before = None
    if decided.baseline:
        before = best.score(decided.task, decided.base, decided.validation, config.eval_batch_size)
        console.print(
            f"before {decided.task.metric} {before:.4f} with a head fitted on the frozen base "
            f"({time.perf_counter() - started:.0f} s)",
            highlight=False,
        )
    if config.head_init == "fitted" and decided.base.new_head:
        careful.install(decided.base)
    return before
