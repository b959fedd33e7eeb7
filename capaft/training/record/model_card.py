"""The model card of a run: what it is, what it scored, and how to repeat it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from capaft.support.printable import fenced, front_matter, markdown
from capaft.tasks.base.registry import task_class
from capaft.training.record.results import Results, score_text


def card_text(results: Results, command: Sequence[str], config: Path) -> str:
    """The card as Markdown with the metadata block that the Hugging Face hub reads.

    Args:
        results: the results of the run.
        command: the command line that was typed, without the program; empty if there was none.
        config: the saved configuration, which repeats the run.
    """
    labels = f"Labels: {', '.join(map(markdown, results.labels))}.\n\n" if results.labels else ""
    typed = f"It was trained by\n\n{fenced(shlex.join(['capaft', *command]))}\n\nand " if command else ""
    several = f" --processes {results.processes}" if results.processes > 1 else ""
    table = "\n".join(f"| {markdown(name)} | {markdown(value)} |" for name, value in _facts(results))
    matter = {
        "library_name": "capaft",
        "base_model": results.model,
        "pipeline_tag": task_class(results.task).pipeline_tag,
        "tags": ["capaft", results.method],
    }
    return f"""{front_matter(matter)}
# {markdown(results.method)} on {markdown(results.data)}

An adapter made with capaft. The file holds trained parameters and a seed; the random numbers that they multiply are
drawn again from the seed wherever it is loaded.

| | |
|---|---|
{table}

{labels}## Repeat

{typed}{"this" if typed else "This command"} repeats it, byte for byte on the same machine and versions:

{fenced(f"capaft train --config {shlex.quote(str(config))}{several}")}
"""


def _facts(results: Results) -> list[tuple[str, str]]:
    """The rows of the card's table."""
    baseline, names = results.baseline, results.score_names
    others = {name: score for name, score in results.scores.items() if name != results.metric}
    return [
        ("base model", results.model),
        ("data", results.data),
        ("method", results.method),
        (f"{names.get(results.metric, results.metric)} on validation", score_text(results.value)),
        *((f"{names.get(name, name)} on validation", score_text(score)) for name, score in others.items()),
        ("frozen base, fitted head", "not measured" if baseline is None else score_text(baseline)),
        ("examples", f"{results.train_examples:,} to train on, {results.validation_examples:,} to validate on"),
        ("training", f"{results.steps:,} steps, {results.seconds:.0f} s; the best after {results.best_step:,}"),
        ("trainable parameters", f"{results.trainable_parameters:,}"),
        ("adapter file", f"{results.adapter_bytes:,} bytes"),
        ("seed", str(results.seed)),
    ]
