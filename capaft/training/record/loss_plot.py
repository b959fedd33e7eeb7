"""The picture of a run, drawn from its records: the losses above, the metric and its uncertainty below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from capaft.config.restarts import parse_restarts
from capaft.support.counting import agreeing
from capaft.support.figure import BLUE, GREEN, GREY, ORANGE, VERMILION, new_figure, plain, png_bytes, tidy
from capaft.tasks.base.uncertainty import interval_method
from capaft.training.record.metrics import EvaluationRecord, Record, StepRecord
from capaft.training.setup.baseline import baseline_head
from capaft.training.trainer import Trainer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Caption:
    """What a run's picture says beside its records.

    Attributes:
        title: names the run.
        metric: name of the metric for people.
        band: the method of its intervals, such as `binomial`, and what they come from.
        baseline: score of the frozen base, if it was measured.
        baseline_name: says what that is of.
        restarts: steps at which the schedule started anew.
    """

    title: str = ""
    metric: str = ""
    band: str = ""
    baseline: float | None = None
    baseline_name: str = "frozen base"
    restarts: tuple[int, ...] = ()


def run_caption(run: Trainer) -> Caption:
    """The caption of a run."""
    job, task = run.job, run.job.task
    is_fitted = baseline_head(task, job.base, job.train) == "fitted"
    examples = job.validation.examples
    return Caption(
        title=f"{job.plan.stack.method} on {job.data}",
        metric=task.score_name(task.metric),
        band=f"{interval_method(task)},\n{examples:,} {agreeing(examples, 'example', 'examples')}",
        baseline=run.baseline,
        baseline_name="frozen base, fitted head" if is_fitted else "start" if job.carried else "base model as it is",
        restarts=tuple(restart.step for restart in parse_restarts(run.config.restarts or ())),
    )


def draw_losses(records: Sequence[Record], metric: str, caption: Caption | None = None) -> bytes:
    """The picture as a PNG; see `loss_figure`."""
    return png_bytes(loss_figure(records, metric, caption or Caption()))


def loss_figure(records: Sequence[Record], metric: str, caption: Caption) -> Figure:
    """The picture of a run: training loss, raw and smoothed, and validation loss; below them the metric.

    Args:
        records: of the run so far.
        metric: name of the metric; if it is the loss, there is one picture of it.
        caption: the words beside them.
    """
    steps = [record for record in records if isinstance(record, StepRecord)]
    evaluations = [record for record in records if isinstance(record, EvaluationRecord)]
    has_metric = bool(evaluations) and metric != "loss"
    figure = new_figure(9.5, 6.2 if has_metric else 3.9)
    panels = figure.subplots(2 if has_metric else 1, 1, sharex=True, squeeze=False)[:, 0]
    if caption.title:
        figure.suptitle(plain(caption.title), fontsize=11)
    _draw_loss(panels[0], steps, evaluations)
    if has_metric:
        _draw_metric(panels[1], evaluations, caption, metric)
    for axes in panels:
        _finish(axes, caption.restarts)
    panels[-1].set_xlabel("optimizer step")
    figure.align_ylabels()
    return figure


def _draw_loss(axes: Axes, steps: Sequence[StepRecord], evaluations: Sequence[EvaluationRecord]) -> None:
    axes.set_title("loss", loc="left", fontsize=10)
    axes.set_ylabel("mean loss")
    if steps:
        numbers, losses = [record.step for record in steps], np.array([_number(record.loss) for record in steps])
        # A few steps are seen best as they are.
        marker = "." if len(steps) <= 30 else ""
        axes.plot(numbers, losses, color=BLUE, alpha=0.3, linewidth=0.8, marker=marker, label="training, each step")
        axes.plot(numbers, _smoothed(losses), color=BLUE, linewidth=1.6, label="training, smoothed")
    if evaluations:
        losses = np.array([_number(record.validation_loss) for record in evaluations])
        _draw_evaluations(axes, evaluations, losses, VERMILION, "validation")


def _draw_metric(axes: Axes, evaluations: Sequence[EvaluationRecord], caption: Caption, metric: str) -> None:
    name = caption.metric or metric
    values = np.array([_number(record.value) for record in evaluations])
    # The record of the best one may have been lost in an interruption.
    best = next((record for record in reversed(evaluations) if record.best), None)
    title = f"{name} on validation"
    if best is not None and best.value is not None and np.isfinite(best.value):
        title += f", best {best.value:.4f} at step {best.step}"
        axes.plot(best.step, best.value, "*", color=ORANGE, markersize=15, markeredgecolor="black", label="best")
    if not np.isfinite(values).any():
        title += ", undefined so far"
        axes.set_yticks([])
    axes.set_title(plain(title), loc="left", fontsize=10)
    axes.set_ylabel(plain(name))
    _draw_interval(axes, evaluations, values, caption.band)
    _draw_evaluations(axes, evaluations, values, GREEN, "validation")
    if caption.baseline is not None and np.isfinite(caption.baseline):
        label = f"{caption.baseline_name}\n{caption.baseline:.4f}"
        axes.axhline(caption.baseline, color=GREY, linestyle="--", linewidth=1.2, label=label)


def _draw_evaluations(
    axes: Axes, evaluations: Sequence[EvaluationRecord], values: NDArray[np.float64], colour: str, label: str
) -> None:
    size = 5 if len(evaluations) <= 30 else 2
    numbers = [record.step for record in evaluations]
    axes.plot(numbers, values, "o-", color=colour, markersize=size, linewidth=1.6, label=label)


def _draw_interval(
    axes: Axes, evaluations: Sequence[EvaluationRecord], values: NDArray[np.float64], method: str
) -> None:
    """A band, or a bar where an evaluation stands alone."""
    bounds = np.array([record.interval or (np.nan, np.nan) for record in evaluations], dtype=np.float64)
    known = np.isfinite(bounds).all(1) & np.isfinite(values)
    if not known.any():
        return
    numbers = np.array([record.step for record in evaluations])
    label = "95 % interval" + (f"\n({method})" if method else "")
    if known.sum() == 1:
        (value,), ((low, high),) = values[known], bounds[known]
        errors = [[max(0.0, value - low)], [max(0.0, high - value)]]
        axes.errorbar(numbers[known], [value], errors, fmt="none", color=GREEN, alpha=0.5, capsize=5, label=label)
    else:
        low, high = np.where(known[:, None], bounds, np.nan).T
        axes.fill_between(numbers, low, high, color=GREEN, alpha=0.16, linewidth=0, label=label)


def _finish(axes: Axes, restarts: Sequence[int]) -> None:
    from matplotlib.ticker import MaxNLocator

    tidy(axes)
    axes.xaxis.set_major_locator(MaxNLocator(9, integer=True, steps=[1, 2, 5, 10]))
    axes.ticklabel_format(axis="y", useOffset=False)
    for number, step in enumerate(restarts):
        label = "extended from here" if number == 0 else None
        axes.axvline(step, color=GREY, linestyle=":", linewidth=1.2, label=label)
    if axes.get_legend_handles_labels()[0]:
        # Beside the axes, where there are no data.
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.02), frameon=False, fontsize=9)


def _number(value: float | None) -> float:
    """A score; a record that was read again has null for one that is not defined."""
    return float("nan") if value is None else value


def _smoothed(losses: NDArray[np.float64], weight: float = 0.9) -> NDArray[np.float64]:
    """Exponential moving average, corrected for its start at zero (Kingma & Ba 2015)."""
    mean, out = 0.0, np.empty_like(losses)
    for i, loss in enumerate(losses):
        mean = weight * mean + (1 - weight) * loss
        out[i] = mean / (1 - weight ** (i + 1))
    return out
