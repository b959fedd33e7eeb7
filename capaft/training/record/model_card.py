"""The model card of a run: what it is, what it scored, and how to repeat it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from capaft.methods.stack import settings_text
from capaft.support.counting import counted
from capaft.tasks.base.registry import task_class
from capaft.training.record.results import Results, interval_text, score_text


def card_text(results: Results, command: Sequence[str], config: Path) -> str:
    """The card as Markdown with the metadata block that the Hugging Face hub reads.

    Args:
        results: the results of the run.
        command: the command line that was typed, without the program; empty if there was none.
        config: the saved configuration, which repeats the run.
    """
    labels = f"Labels: {', '.join(results.labels)}.\n\n" if results.labels else ""
    typed = f"It was trained by\n\n```\n{shlex.join(['capaft', *command])}\n```\n\nand " if command else ""
    several = f" --processes {results.processes}" if results.processes > 1 else ""
    table = "\n".join(f"| {name} | {value} |" for name, value in _facts(results))
    return f"""---
library_name: capaft
base_model: {results.model}
pipeline_tag: {task_class(results.task).pipeline_tag}
tags: [capaft, {results.method}]
---

# {results.method} on {results.data}

An adapter made with capaft. The file holds trained parameters and a seed; the random numbers that they multiply are
drawn again from the seed wherever it is loaded.

| | |
|---|---|
{table}

{labels}## Repeat

{typed}{"this" if typed else "This command"} repeats it, byte for byte on the same machine and versions:

```
capaft train --config {shlex.quote(str(config))}{several}
```
"""


def _facts(results: Results) -> list[tuple[str, str]]:
    """The rows of the card's table."""
    names, versions = results.score_names, results.machine
    others = {name: score for name, score in results.scores.items() if name != results.metric}
    return [
        ("base model", results.model),
        ("data", results.data),
        ("method", results.method),
        *_settings(results),
        (f"{names.get(results.metric, results.metric)} on validation", score_text(results.value) + _interval(results)),
        *((f"{names.get(name, name)} on validation", score_text(score)) for name, score in others.items()),
        _baseline(results),
        ("examples", f"{results.train_examples:,} to train on, {results.validation_examples:,} to validate on"),
        (
            "training",
            f"{counted(results.steps, 'step')}, {results.seconds:.0f} s; the best after {results.best_step:,}",
        ),
        ("trainable parameters", f"{results.trainable_parameters:,}"),
        ("adapter file", counted(results.adapter_bytes, "byte")),
        ("seed", str(results.seed)),
        *([("made with", ", ".join(f"{name} {version}" for name, version in versions.items()))] if versions else []),
    ]


def _settings(results: Results) -> list[tuple[str, str]]:
    """The rows about the adapter's settings and those of training; results of earlier versions have none."""
    method, training = dict(results.method_settings), dict(results.training_settings)
    targets, sites = settings_text(method.pop("targets", {})), method.pop("sites", None)
    restarts = training.pop("restarts", [])
    shown = settings_text(training)
    if restarts:
        shown += f"; warm-up and schedule started anew at step {', '.join(map(str, restarts))}"
    rows = [
        ("method's settings", settings_text(method)),
        ("adapted layers", f"{targets or 'the defaults of the method'}: {counted(sites, 'site')}" if sites else ""),
        ("settings of training", shown),
    ]
    return [(name, value) for name, value in rows if value]


def _interval(results: Results) -> str:
    return f" ({interval_text(results.interval)}, {results.interval_method})" if results.interval else ""


def _baseline(results: Results) -> tuple[str, str]:
    """The row about the frozen base."""
    if results.baseline is None:
        return "baseline", "not measured"
    head = "the base model as it is" if results.baseline_head == "own" else "frozen base, fitted head"
    return head, score_text(results.baseline)
