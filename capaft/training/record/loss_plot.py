"""The loss curve of a run, drawn from its records."""

from __future__ import annotations

import io
from typing import Any

import numpy as np


def draw_losses(records: list[dict[str, Any]], metric: str) -> bytes:
    """A PNG: raw and smoothed training loss, validation loss, and the metric with its best step marked."""
    from matplotlib.figure import Figure

    steps = [r for r in records if "loss" in r]
    evaluations = [r for r in records if "value" in r]
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    at, losses = [r["step"] for r in steps], np.array([r["loss"] for r in steps])
    axes.plot(at, losses, color="tab:blue", alpha=0.25, linewidth=1)
    axes.plot(at, _smoothed(losses), color="tab:blue", label="training loss")
    axes.set_xlabel("optimiser step")
    axes.set_ylabel("loss")
    if evaluations:
        eval_at = [r["step"] for r in evaluations]
        axes.plot(
            eval_at,
            [_number(r["validation_loss"]) for r in evaluations],
            "o-",
            color="tab:orange",
            label="validation loss",
        )
        right = axes.twinx()
        right.plot(eval_at, [_number(r["value"]) for r in evaluations], "s--", color="tab:green", label=metric)
        right.set_ylabel(metric, color="tab:green")
        best = [r for r in evaluations if r["best"]][-1]
        right.annotate(
            f"best {_number(best['value']):.4f}",
            (best["step"], _number(best["value"])),
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


def _smoothed(losses: np.ndarray[Any, Any], weight: float = 0.9) -> np.ndarray[Any, Any]:
    """Exponential moving average, corrected for its start at zero (Kingma & Ba 2015)."""
    mean, out = 0.0, np.empty_like(losses)
    for i, loss in enumerate(losses):
        mean = weight * mean + (1 - weight) * loss
        out[i] = mean / (1 - weight ** (i + 1))
    return out
