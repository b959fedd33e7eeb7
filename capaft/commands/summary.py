"""What a person wants to read when a run or an evaluation is over."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any


def run_summary(results: dict[str, Any]) -> str:
    """What a run came to, and what to do next."""
    before = "" if results["baseline"] is None else _compared(results["value"], results["baseline"])
    others = _scores(results, "loss")
    lines = [
        f"{results['metric']} {_number(results['value'])}{before}{f'  ({others})' if others else ''}",
        f"{results['trainable_parameters']:,} trained numbers ({results['adapter_parameters']:,} of the adapter, "
        f"{results['head_parameters']:,} of the head) in {results['adapter_bytes']:,} bytes",
        f"{results['seconds']:.0f} s, {results['examples_per_second']:.0f} examples/s, "
        f"peak memory {results['peak_memory_bytes'] / 2**20:.0f} MiB",
        "next:",
        *(f"  {command}" for command in results["next"]),
    ]
    return "\n".join(lines)


def evaluation_summary(results: dict[str, Any], predictions: Path | None) -> str:
    """All scores in a line, or where the predictions are that nothing can be compared with."""
    if results["value"] is None:
        return f"{results['examples']} predictions in {predictions}, and no targets to compare them with"
    value = f"{results['metric']} {_number(results['value'])}"
    return f"{value} on {results['examples']} examples  ({_scores(results)})"


def _scores(results: dict[str, Any], *without: str) -> str:
    """All scores but that of the metric."""
    shown = (name for name in results["scores"] if name not in (results["metric"], *without))
    return "  ".join(f"{name} {_number(results['scores'][name])}" for name in shown)


def _number(value: float | None) -> str:
    """A score in four digits; JSON has null for one that is not defined."""
    return "undefined" if value is None or math.isnan(value) else f"{value:.4f}"


def _compared(value: float | None, baseline: float) -> str:
    """Which way a metric went from that of the frozen base, in the digits that are shown."""
    if value is None:
        return f", against {baseline:.4f} with the base frozen"
    now, then = round(value, 4), round(baseline, 4)
    # "Up" and "down" say nothing of better or worse; of what is equal, or no number, neither is true.
    way = "up from" if now > then else "down from" if now < then else "against"
    return f", {way} {baseline:.4f} with the base frozen"
