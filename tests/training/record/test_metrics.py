"""Records of a run as lines of `metrics.jsonl`, and back."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from typing import Any

import pytest

from capaft.support import strict_json
from capaft.training.record.metrics import EvaluationRecord, Record, StepRecord, parse_record

STEP = StepRecord(3, 0.25, 0.1 + 0.2, 1e-3, 51.2, 4.5, 2**30)
EVALUATION = EvaluationRecord(
    step=8,
    epoch=1.0,
    metric="f1",
    value=2 / 3,
    validation_loss=0.5,
    best=True,
    scores={"f1": 2 / 3, "accuracy": 0.9},
    examples_per_second=51.2,
    seconds_left=0.0,
    peak_memory_bytes=2**30,
)


def reread(record: Record) -> Record:
    return parse_record(json.loads(strict_json.lines([asdict(record)])))


@pytest.mark.parametrize("record", [STEP, EVALUATION])
def test_a_record_reads_back_the_same(record: Record) -> None:
    assert reread(record) == record


def test_what_is_not_finite_reads_back_as_none() -> None:
    assert reread(replace(STEP, loss=math.inf)) == replace(STEP, loss=None)
    undefined = replace(EVALUATION, value=math.nan, validation_loss=math.nan, scores={"f1": math.nan, "accuracy": 0.9})
    expected = replace(EVALUATION, value=None, validation_loss=None, scores={"f1": None, "accuracy": 0.9})
    assert reread(undefined) == expected
    # Once read, it is written the same again.
    assert reread(expected) == expected


@pytest.mark.parametrize(
    "values",
    [
        None,
        3,
        [],
        {},
        {"step": 1},
        {"loss": 0.5},
        asdict(STEP) | {"step": "1"},
        asdict(STEP) | {"loss": "x"},
        asdict(EVALUATION) | {"scores": 3},
        asdict(EVALUATION) | {"interval": [0.5]},
    ],
)
def test_other_values_are_no_record(values: Any) -> None:
    with pytest.raises(ValueError, match=r"^must "):
        parse_record(values)


@pytest.mark.parametrize("record", [STEP, EVALUATION])
def test_what_another_version_adds_is_left_out(record: Record) -> None:
    assert parse_record(asdict(record) | {"mood": "good"}) == record


def test_trackers_get_the_numbers_alone() -> None:
    tracked = EVALUATION.tracked()
    assert tracked.items() >= {"step": 8, "value": 2 / 3, "accuracy": 0.9, "f1": 2 / 3, "best": True}.items()
    assert not tracked.keys() & {"metric", "scores"}
    undefined = replace(EVALUATION, value=None, scores={"f1": None})
    assert not undefined.tracked().keys() & {"value", "f1"}
