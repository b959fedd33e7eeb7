"""The picture of a run's losses."""

from __future__ import annotations

from dataclasses import replace

import pytest

from capaft.training.record.loss_plot import draw_losses
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
