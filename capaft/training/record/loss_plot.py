"""The loss curve of a run, drawn from its records."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from capaft.training.record.metrics import EvaluationRecord, Record, StepRecord


def draw_losses(records: Sequence[Record], metric: str) -> bytes:
    """A PNG: raw and smoothed training loss, validation loss, and the metric with its best step marked."""
    from matplotlib.figure import Figure

    steps = [record for record in records if isinstance(record, StepRecord)]
    evaluations = [record for record in records if isinstance(record, EvaluationRecord)]
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    step_axis, losses = [record.step for record in steps], np.array([_number(record.loss) for record in steps])
    axes.plot(step_axis, losses, color="tab:blue", alpha=0.25, linewidth=1)
    axes.plot(step_axis, _smoothed(losses), color="tab:blue", label="training loss")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss")
    if evaluations:
        evaluation_axis = [record.step for record in evaluations]
        validation_losses = [_number(record.validation_loss) for record in evaluations]
        values = [_number(record.value) for record in evaluations]
        axes.plot(evaluation_axis, validation_losses, "o-", color="tab:orange", label="validation loss")
        right = axes.twinx()
        right.plot(evaluation_axis, values, "s--", color="tab:green", label=metric)
        right.set_ylabel(metric, color="tab:green")
        # The record of the best one may have been lost in an interruption.
        for best in [record for record in evaluations if record.best][-1:]:
            right.annotate(
                f"best {_number(best.value):.4f}",
                (best.step, _number(best.value)),
                textcoords="offset points",
                xytext=(-8, -14),
                ha="right",
                color="tab:green",
            )
    axes.legend(loc="upper left", frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


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
