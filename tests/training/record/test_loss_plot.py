"""The picture of a run's losses."""

from __future__ import annotations

from dataclasses import replace

import pytest
from pictures import check_legible, words

from capaft.training.record.loss_plot import Caption, draw_losses, loss_figure
from capaft.training.record.metrics import EvaluationRecord, Record, StepRecord

STEP = StepRecord(1, 0.5, 0.7, 1e-3, 50.0, 1.0, 2**20)
EVALUATION = EvaluationRecord(1, 0.5, "f1", 0.4, 0.6, True, {"f1": 0.4}, 50.0, 1.0, 2**20)


@pytest.mark.parametrize(
    "records",
    [
        [STEP, EVALUATION],
        [STEP],
        # Records may have been lost in an interruption, and scores may be undefined.
        [EVALUATION],
        [],
        [STEP, replace(EVALUATION, best=False)],
        [replace(STEP, loss=None), replace(EVALUATION, value=None, validation_loss=None)],
    ],
)
def test_it_is_a_picture_whatever_records_there_are(records: list[Record]) -> None:
    assert draw_losses(records, "f1").startswith(b"\x89PNG")


def evaluated(steps: int, every: int, *, intervals: bool = True) -> list[Record]:
    records: list[Record] = []
    for step in range(1, steps + 1):
        records.append(replace(STEP, step=step, loss=2 / step**0.3))
        if step % every == 0:
            value = 0.9 - 0.4 / step
            ends = [value - 0.1, value + 0.05] if intervals else None
            records.append(replace(EVALUATION, step=step, value=value, validation_loss=1.5 / step**0.3, interval=ends))
    return records


@pytest.mark.parametrize(("steps", "every"), [(3, 3), (50, 10), (2000, 50)])
@pytest.mark.parametrize("title", ["lora on reviews.csv", "lora on " + "a/long/path/" * 20])
def test_it_is_legible(steps: int, every: int, title: str) -> None:
    caption = Caption(title, "macro F1", "bootstrap,\n65 examples", 0.61, "frozen base, fitted head", (steps // 2,))
    figure = loss_figure(evaluated(steps, every), "f1", caption)
    check_legible(figure)
    shown = words(figure)
    assert {"optimizer step", "mean loss", "macro F1", "training, smoothed", "validation"} <= set(shown)
    assert {"95 % interval (bootstrap, 65 examples)", "frozen base, fitted head 0.6100", "extended from here"} <= set(
        shown
    )
    assert f"macro F1 on validation, best {0.9 - 0.4 / steps:.4f} at step {steps}" in shown


def test_it_has_no_band_without_intervals_and_no_second_panel_for_the_loss() -> None:
    assert not any(
        "interval" in text for text in words(loss_figure(evaluated(50, 10, intervals=False), "f1", Caption()))
    )
    assert len(loss_figure(evaluated(50, 10), "loss", Caption()).axes) == 1


def test_the_band_spans_the_interval() -> None:
    band = loss_figure(evaluated(50, 10), "f1", Caption()).axes[1].collections[0]
    heights = band.get_paths()[0].vertices[:, 1]
    assert heights.min() == pytest.approx(0.9 - 0.4 / 10 - 0.1)
    assert heights.max() == pytest.approx(0.9 - 0.4 / 50 + 0.05)


def test_an_undefined_metric_is_said() -> None:
    records = [replace(EVALUATION, step=step, value=None, best=False) for step in (1, 2)]
    assert "f1 on validation, undefined so far" in words(loss_figure(records, "f1", Caption()))
