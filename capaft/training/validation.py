"""The evaluations of a run on its validation split: scored, recorded, drawn, and the best adapter kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from capaft.adapter.file import save_load
from capaft.adapter.file.save_load import restore_parameters
from capaft.support import strict_json
from capaft.support.files import write_atomically
from capaft.training.early_stopping import Best, tells_nothing
from capaft.training.evaluate import Evaluation, evaluate
from capaft.training.record.best_adapter import keep_last
from capaft.training.record.journal import Journal
from capaft.training.record.loss_plot import draw_losses, run_caption
from capaft.training.trainer import Trainer


def evaluate_and_keep(
    run: Trainer, journal: Journal, best: Best, step: int, epoch: float, interrupted: Callable[[], bool]
) -> Best:
    """Evaluate, record the scores, and save the adapter; the best evaluation so far, this one included."""
    task = run.job.task
    evaluation = _evaluated(run, interrupted, journal.evaluating(len(run.job.validation)))
    value, scores, interval = evaluation.scores[task.metric], evaluation.scores, evaluation.interval
    more, worst = task.more_is_better, task.worst_score
    best = best.after(
        step, value, scores, more_is_better=more, min_delta=run.config.min_delta, worst=worst, interval=interval
    )
    is_best = best.step == step
    journal.check_in_place()
    save_adapter(run, run.directory.last)
    if run.processes.is_first:
        best = keep_last(run.directory, best, is_best=is_best)
    if is_best:
        _write_predictions(run, evaluation.predictions)
    by_loss = tells_nothing(value, worst, more)
    shown = task.score_name(task.metric)
    journal.evaluation(step, epoch, task.metric, scores, is_best, shown=shown, by_loss=by_loss, interval=interval)
    draw_plot(run, journal)
    return best


def evaluate_as_saved(run: Trainer, interrupted: Callable[[], bool]) -> Evaluation:
    """The scores of the rounded parameters in the file, which users will get."""
    run.processes.totals(0)  # The first process may still be writing the file.
    restore_parameters(run.model, run.directory.adapter)
    evaluation = _evaluated(run, interrupted)
    _write_predictions(run, evaluation.predictions)
    return evaluation


def save_adapter(run: Trainer, path: Path) -> None:
    """Write the adapter as it is now; the first process does."""
    if run.processes.is_first:
        record, dtype = run.job.record, run.config.save_dtype
        save_load.save(run.model, path, base=run.job.base.base, task=record, dtype=dtype, samples=run.samples)


def draw_plot(run: Trainer, journal: Journal) -> None:
    """Draw the picture of the run so far; the first process does."""
    if run.processes.is_first:
        picture = draw_losses(journal.records, run.job.task.metric, run_caption(run))
        write_atomically(run.directory.plot, picture, make_parents=False)


def _write_predictions(run: Trainer, predictions: Sequence[Any]) -> None:
    """Write the task's report of its predictions, one JSON record a line."""
    if run.processes.is_first and (records := run.job.task.report(run.job.validation, predictions)):
        write_atomically(run.directory.predictions, strict_json.lines(records), make_parents=False)


def _evaluated(
    run: Trainer, interrupted: Callable[[], bool], advance: Callable[[int], None] = lambda examples: None
) -> Evaluation:
    """The scores on the validation split, with the parameters that the adapter has now."""
    job = run.job
    return evaluate(
        job.task,
        job.base,
        job.base.model,
        job.validation,
        run.config.eval_batch_size,
        processes=run.processes,
        fitting=run.fitting,
        autocast=run.accelerator.autocast(),
        interrupted=interrupted,
        advance=advance,
    )
