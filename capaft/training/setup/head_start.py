"""The start of a run: its head fitted on the frozen base, by this run or an earlier one, and the baseline."""

from __future__ import annotations

import time

import torch

from capaft.support.activity import activity
from capaft.support.errors import TrainingError
from capaft.training.evaluate import evaluate
from capaft.training.parallel.sharding import sharding_requested
from capaft.training.setup import fitted_head, head_cache
from capaft.training.setup.baseline import baseline_head, starts_fitted
from capaft.training.setup.head_cache import Start
from capaft.training.trainer import Trainer


def start_head(run: Trainer) -> float | None:
    """Fit a head on the frozen base if it is needed: as the start of the run's head, as the baseline, or as both.

    The first process fits it and the others take its values, so that all start from the same bits. A checkpoint that
    has a head for the task is scored under it.

    Returns:
        The baseline's score, or None if it was not asked for or there is no head to score under.
    """
    job, config = run.job, run.config
    starts = starts_fitted(job.task, job.base, job.train, config)
    scored = baseline_head(job.task, job.base, job.train) if job.baseline else None
    if scored == "own":
        return _score_own(run)
    if not (scored or starts):
        return None
    baseline = _fit_and_install(run, starts) if run.processes.is_first else None
    parameters = job.base.named_parameters()
    values = run.processes.from_first([parameters[name].detach().cpu() for name in job.base.head])
    with torch.no_grad():
        for name, value in zip(job.base.head, values, strict=True):
            parameters[name].copy_(value)
    return run.processes.from_first(baseline)


def _score_own(run: Trainer) -> float | None:
    """The score of the base model as it is, over all processes; None if it is sharded, or not finite."""
    job = run.job
    if sharding_requested():
        return None
    try:
        evaluation = evaluate(
            job.task, job.base, run.model, job.validation, run.config.eval_batch_size, processes=run.processes
        )
    except TrainingError:
        run.say("before not measured: the loss on the validation data is not finite before training")
        return None
    value = evaluation.scores[job.task.metric]
    whose = job.origin if job.carried else "the base model as it is"
    run.say(f"before {job.task.score_name(job.task.metric)} {value:.4f} of {whose}")
    return value


def _fit_and_install(run: Trainer, starts: bool) -> float | None:
    """Fit the head, or take it from the cache; give it to the model if training `starts` from it.

    Returns:
        The baseline's score, if it was asked for.
    """
    job = run.job
    count = min(len(job.train), fitted_head.HEAD_EXAMPLES)
    aim = "start and baseline" if starts and job.baseline else "start" if starts else "baseline"
    key = _cache_key(run)
    start = head_cache.cached_start(key) if key else None
    origin = ", by an earlier run (--no-head-cache fits it anew)" if start else ""
    run.say(f"head   fitted on {count} examples' features of {job.origin}, as {aim}{origin}")
    started = time.perf_counter()
    if start is None:
        start = _fit(run)
        if start and key:
            head_cache.keep_start(key, start)
    if start is None:
        return None
    if start.baseline is not None:
        seconds = "" if origin else f" ({time.perf_counter() - started:.0f} s)"
        metric = job.task.score_name(job.task.metric)
        run.say(f"before {metric} {start.baseline:.4f} with a head fitted on {job.origin}{seconds}")
    if starts:
        start.head.install(job.base)
    return start.baseline


def _fit(run: Trainer) -> Start | None:
    """The head that training starts from, and the baseline if asked for; None if the model has no suitable head."""
    job, batch_size = run.job, run.config.eval_batch_size
    total = min(len(job.train), fitted_head.HEAD_EXAMPLES) + (len(job.validation) if job.baseline else 0)
    with activity(run.console, "fitting the head", total=total) as advance:
        heads = fitted_head.fit_heads(job.task, job.base, job.train, batch_size, run.config.seed, advance)
        if heads is None:
            return None
        best, careful = heads
        score = best.score(job.task, job.base, job.validation, batch_size, advance) if job.baseline else None
    return Start(careful, score)


def _cache_key(run: Trainer) -> str | None:
    """The key of this start in the cache, or None if the cache may not be used."""
    job, config = run.job, run.config
    if not config.head_cache or config.trust_remote_code or job.carried:
        # The features of an adapter are of no use to another run.
        return None
    examples = [job.train, job.validation] if job.baseline else [job.train]
    settings = {name: getattr(config, name) for name in ("seed", "eval_batch_size", "precision")}
    return head_cache.start_key(job.task, job.base, examples, settings)
