"""The model card of a run: what it is, what it scored, and how to repeat it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# What the hub calls the tasks whose name there is another.
_PIPELINES = {"causal-lm": "text-generation", "seq2seq": "text2text-generation", "masked-lm": "fill-mask"}


def card_text(results: dict[str, Any], command: Sequence[str], config: Path) -> str:
    """The card as Markdown with the metadata block that the Hugging Face hub reads.

    Args:
        results: what `results.json` holds.
        command: the command line that was typed, without the program; empty if there was none.
        config: the saved configuration, which repeats the run.
    """
    baseline = results["baseline"]
    others = {name: score for name, score in results["scores"].items() if name != results["metric"]}
    labels = f"Labels: {', '.join(results['labels'])}.\n\n" if results["labels"] else ""
    typed = f"It was made by\n\n```\n{shlex.join(['capaft', *command])}\n```\n\nand " if command else ""
    several = f" --processes {results['processes']}" if results["processes"] > 1 else ""
    rows = [
        ("base model", results["model"]),
        ("data", results["data"]),
        ("method", results["method"]),
        (f"{results['metric']} on validation", f"{results['value']:.4f}"),
        *((f"{name} on validation", f"{score:.4f}") for name, score in others.items()),
        ("frozen base, fitted head", "not measured" if baseline is None else f"{baseline:.4f}"),
        ("examples", f"{results['train_examples']:,} to train on, {results['validation_examples']:,} to validate on"),
        (
            "training",
            f"{results['steps']:,} steps, {results['seconds']:.0f} s; the best after {results['best_step']:,}",
        ),
        ("trained numbers", f"{results['trainable_parameters']:,}"),
        ("adapter file", f"{results['adapter_bytes']:,} bytes"),
        ("seed", str(results["seed"])),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return f"""---
library_name: capaft
base_model: {results["model"]}
pipeline_tag: {_PIPELINES.get(results["task"], results["task"])}
tags: [capaft, {results["method"]}]
---

# {results["method"]} on {results["data"]}

An adapter made with capaft. The file holds trained numbers and a seed; the
random numbers they multiply are drawn again from the seed wherever it is loaded.

| | |
|---|---|
{table}

{labels}## Repeat

{typed}{"t" if typed else "T"}his repeats it, to the byte on the same machine and versions:

```
capaft train --config {shlex.quote(str(config))}{several}
```
"""
