"""The last lines of a run and of an evaluation."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_results import RESULTS

from capaft.commands.summary import evaluation_summary, run_summary
from capaft.support import strict_json
from capaft.training.record.results import Results
from capaft.training.scoring import Scores


def test_a_run_in_lines() -> None:
    assert run_summary(RESULTS).splitlines() == [
        "accuracy 0.8308, up from 0.8154 with the base frozen  (f1 0.6667)",
        "14,092 trainable parameters (9,472 of the adapter, 4,620 of the head) in 57,824 bytes",
        "2 s, 51 examples/s, peak memory 3 MiB",
        "next:",
        "  capaft eval runs/one",
        "  capaft merge runs/one --output runs/one/merged",
    ]


@pytest.mark.parametrize(
    ("value", "baseline", "direction"),
    [
        (0.8308, 0.8154, ", up from 0.8154"),
        (0.25, 0.5, ", down from 0.5000"),
        (0.5, 0.5, ", against 0.5000"),
        (0.50001, 0.5, ", against 0.5000"),
        (math.nan, 0.5, ", against 0.5000"),
        (0.5, None, ""),
    ],
)
def test_a_summary_says_which_way_the_metric_went(value: float, baseline: float | None, direction: str) -> None:
    results = replace(RESULTS, value=value, baseline=baseline)
    shown = run_summary(results).splitlines()[0]
    frozen = " with the base frozen" if direction else ""
    number = "undefined" if math.isnan(value) else f"{value:.4f}"
    assert shown.split("  (")[0] == f"accuracy {number}{direction}{frozen}"
    # As a finished run is read again.
    again = json.loads(strict_json.document(results.record()))
    assert run_summary(Results(**again)).splitlines()[0] == shown


def test_a_summary_says_how_sure_a_score_is_and_what_the_baseline_is_of() -> None:
    results = replace(RESULTS, interval=[0.43, 0.97], interval_method="binomial", baseline_head="own")
    first, second, *_ = run_summary(results).splitlines()
    assert first.startswith("accuracy 0.8308, up from 0.8154 of the base model as it is")
    assert second == "95 % interval 0.4300 to 0.9700 from 6 examples (binomial)"
    scores = Scores("accuracy", 1.0, 0.5, {"loss": 0.5, "accuracy": 1.0}, 1, {}, [0.2065, 1.0], "binomial")
    assert evaluation_summary(scores, None).splitlines() == [
        "accuracy 1.0000 on 1 example  (loss 0.5000)",
        "95 % interval 0.2065 to 1.0000 from 1 example (binomial)",
    ]


def test_a_run_with_one_score_has_no_others() -> None:
    line = run_summary(replace(RESULTS, baseline=None, scores={"loss": 0.25, "accuracy": 0.8308})).splitlines()[0]
    assert line == "accuracy 0.8308"


def test_an_evaluation_in_a_line() -> None:
    scores = Scores("accuracy", 0.75, 0.5, {"loss": 0.5, "accuracy": 0.75, "f1": None}, 6)
    assert evaluation_summary(scores, None) == "accuracy 0.7500 on 6 examples  (loss 0.5000  f1 undefined)"


def test_an_evaluation_without_targets_names_its_predictions() -> None:
    scores = Scores("bleu", None, None, {}, 2)
    assert evaluation_summary(scores, Path("p.jsonl")) == (
        "2 predictions in p.jsonl; there are no targets to compare them with"
    )
