"""The outcome of a training, and the results of its run."""

from __future__ import annotations

from dataclasses import dataclass, replace

from capaft.tasks.base.uncertainty import Interval, interval_method
from capaft.training.record.conditions import machine, method_settings, training_settings
from capaft.training.record.next_commands import commands_after_training
from capaft.training.record.results import Results
from capaft.training.setup.baseline import baseline_head
from capaft.training.setup.job import Job
from capaft.training.trainer import Trainer


@dataclass(frozen=True)
class Outcome:
    """The end of a run.

    Attributes:
        value: the metric of the saved adapter on validation.
        scores: all its scores.
        interval: the 95 % interval of the metric; None if there is none.
        best_step: optimizer steps after which it was saved.
        seconds: of training, evaluations included.
        examples_per_second: over the same time.
        adapter_bytes: size of the adapter file.
        peak_memory_bytes: highest memory use: of the accelerator, or of the process on a CPU.
        epochs: passes over the data.
        steps: optimizer steps; fewer than planned if no better score came.
        bytes_per_step: gradients that each process sent to the others in a step.
    """

    value: float
    scores: dict[str, float]
    interval: Interval | None
    best_step: int
    seconds: float
    examples_per_second: float
    adapter_bytes: int
    peak_memory_bytes: int
    epochs: float
    steps: int
    bytes_per_step: int


def results_of(run: Trainer, outcome: Outcome, init_from: str | None = None) -> Results:
    """The results of a run in its own directory.

    Args:
        run: the run.
        outcome: its end.
        init_from: the shared name of the adapter that it carried on.
    """
    job = run.job
    return Results(
        output=str(run.directory.path),
        model=job.base.base.name or "",
        data=job.data,
        task=job.task.name,
        method=job.plan.stack.method,
        metric=job.task.metric,
        baseline=run.baseline,
        baseline_head=None if run.baseline is None else baseline_head(job.task, job.base, job.train),
        trainable_parameters=job.adapter_parameters + job.head_parameters,
        adapter_parameters=job.adapter_parameters,
        head_parameters=job.head_parameters,
        processes=run.processes.count,
        seed=run.config.seed,
        train_examples=job.train.examples,
        validation_examples=job.validation.examples,
        labels=list(job.task.labels),
        next=_next_commands(str(run.directory.path), job),
        score_names=job.task.score_names(outcome.scores),
        interval_method=None if outcome.interval is None else interval_method(job.task),
        method_settings=method_settings(job, run.config),
        training_settings=training_settings(job, run.config),
        machine=machine(),
        init_from=_origin(job, init_from),
        **vars(outcome) | {"interval": None if outcome.interval is None else list(outcome.interval)},
    )


def _origin(job: Job, name: str | None) -> dict[str, str]:
    """The name and the digest of the adapter that a job carries on."""
    if job.carried is None:
        return {}
    return {"run": name or job.origin, "digest": job.carried.predecessor.digest}


def results_at(results: Results, output: str, job: Job) -> Results:
    """The results as those of a run in a directory of this name."""
    return replace(results, output=output, next=_next_commands(output, job))


def _next_commands(output: str, job: Job) -> list[str]:
    quantised = job.base.is_quantised
    return commands_after_training(output, job.plan.stack, quantised=quantised, task=job.task, columns=job.columns)
