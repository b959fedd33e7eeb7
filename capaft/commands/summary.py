"""The last lines of a run or an evaluation, for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from capaft.support.counting import counted
from capaft.training.record.results import Results, interval_text, score_text

if TYPE_CHECKING:
    from capaft.training.scoring import Scores


def run_summary(results: Results) -> str:
    """The score of a run, its size and cost, and what to do next."""
    base = (
        f"of {results.baseline_name}" if results.baseline_head == "own" or results.init_from else "with the base frozen"
    )
    before = "" if results.baseline is None else _comparison(results.value, results.baseline, base)
    others = _other_scores(results.scores, results.score_names, results.metric, "loss")
    metric = results.score_names.get(results.metric, results.metric)
    lines = [
        f"{metric} {score_text(results.value)}{before}{f'  ({others})' if others else ''}",
        *interval_lines(results.interval, results.interval_method, results.validation_examples),
        f"{counted(results.trainable_parameters, 'trainable parameter')} "
        f"({results.adapter_parameters:,} of the adapter, {results.head_parameters:,} of the head) "
        f"in {counted(results.adapter_bytes, 'byte')}",
        f"{results.seconds:.0f} s, {results.examples_per_second:.0f} examples/s, "
        f"peak memory {results.peak_memory_bytes / 2**20:.0f} MiB",
        "next:",
        *(f"  {command}" for command in results.next),
    ]
    return "\n".join(lines)


def evaluation_summary(scores: Scores, predictions: Path | None) -> str:
    """All scores in a line, and the interval of the metric; without targets, the place of the predictions."""
    if scores.value is None:
        return f"{counted(scores.examples, 'prediction')} in {predictions}; there are no targets to compare them with"
    others = _other_scores(scores.scores, scores.score_names, scores.metric)
    metric = scores.score_names.get(scores.metric, scores.metric)
    examples = counted(scores.examples, "example")
    line = f"{metric} {score_text(scores.value)} on {examples}{f'  ({others})' if others else ''}"
    return "\n".join([line, *interval_lines(scores.interval, scores.interval_method, scores.examples)])


def interval_lines(interval: Sequence[float] | None, method: str | None, examples: int) -> list[str]:
    """A line about the interval of a score, if it has one."""
    if interval is None:
        return []
    return [f"{interval_text(interval)} from {counted(examples, 'example')} ({method})"]


def _other_scores(scores: dict[str, float | None], names: dict[str, str], *excluded: str) -> str:
    """All scores except those excluded, by their names for people."""
    kept = {name: score for name, score in scores.items() if name not in excluded}
    return "  ".join(f"{names.get(name, name)} {score_text(score)}" for name, score in kept.items())


def _comparison(value: float | None, baseline: float, base: str) -> str:
    """The direction from the frozen base's score to the adapter's, judged by the digits that are shown."""
    if value is None:
        return f", against {baseline:.4f} {base}"
    now, then = round(value, 4), round(baseline, 4)
    # Equal scores, or an undefined one, went neither up nor down. Less may be better, so no word judges.
    direction = "up from" if now > then else "down from" if now < then else "against"
    return f", {direction} {baseline:.4f} {base}"
