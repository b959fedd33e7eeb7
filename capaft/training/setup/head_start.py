"""Where a new head starts: fitted on the frozen base, by this run or an earlier one."""

from __future__ import annotations

import time

import torch
from rich.console import Console

from capaft.config.train_config import TrainConfig
from capaft.training.parallel.processes import Processes
from capaft.training.setup import fitted_head, head_cache
from capaft.training.setup.head_cache import Start
from capaft.training.setup.job import Job


def start_head(decided: Job, config: TrainConfig, console: Console, processes: Processes) -> float | None:
    """Fit a head on the frozen base where it is wanted: as the head's start, as the baseline, or as both.

    The first process fits it and the others take its numbers, so that all start from the same bits.

    Returns:
        The baseline's score, or None where it was not asked for or the task has none.
    """
    wanted = config.head_init == "fitted" and config.head == "full" and decided.base.new_head
    starts = wanted and fitted_head.can_install_head(decided.base)
    if not (decided.baseline or starts) or not fitted_head.can_fit_head(decided.task, decided.train):
        return None
    before = None
    if processes.is_first:
        count = min(len(decided.train), fitted_head.HEAD_EXAMPLES)
        aim = "start and baseline" if starts and decided.baseline else "start" if starts else "baseline"
        key = _key_of_head(decided, config)
        found = head_cache.cached_start(key) if key else None
        kept = ", by an earlier run (--no-head-cache fits it anew)" if found else ""
        line = f"head   fitted on {count} examples' features of the frozen base, as {aim}{kept}"
        console.print(line, highlight=False, soft_wrap=True)
        started = time.perf_counter()
        if not found and (found := _fitted(decided, config)) and key:
            head_cache.keep_start(key, found)
        before = found.baseline if found else None
        if before is not None:
            seconds = "" if kept else f" ({time.perf_counter() - started:.0f} s)"
            console.print(
                f"before {decided.task.metric} {before:.4f} with a head fitted on the frozen base{seconds}",
                highlight=False,
            )
        if found and starts:
            found.head.install(decided.base)
    own = decided.base.named_parameters()
    numbers = processes.from_first([own[name].detach().cpu() for name in decided.base.head])
    with torch.no_grad():
        for name, values in zip(decided.base.head, numbers, strict=True):
            own[name].copy_(values)
    return processes.from_first(before)


def _fitted(decided: Job, config: TrainConfig) -> Start | None:
    """The head that training starts from, and the baseline if it is wanted; None if the model's head cannot be read."""
    task, base, batch_size = decided.task, decided.base, config.eval_batch_size
    if (heads := fitted_head.fit_heads(task, base, decided.train, batch_size, config.seed)) is None:
        return None
    best, careful = heads
    return Start(careful, best.score(task, base, decided.validation, batch_size) if decided.baseline else None)


def _key_of_head(decided: Job, config: TrainConfig) -> str | None:
    """What the same start would be found by in the cache, if it may be looked for there."""
    if not config.head_cache or config.trust_remote_code:
        return None
    examples = [decided.train, decided.validation] if decided.baseline else [decided.train]
    settings = {name: getattr(config, name) for name in ("seed", "eval_batch_size", "precision")}
    return head_cache.start_key(decided.task, decided.base, examples, settings)
