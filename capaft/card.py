"""The model card of a run: what it is, what it scored, and how to repeat it."""

from __future__ import annotations

from typing import Any


def write(results: dict[str, Any], command: str) -> str:
    """The card as Markdown with the metadata block that the Hugging Face hub reads."""
    baseline = results["baseline"]
    rows = [
        ("base model", results["model"]),
        ("data", results["data"]),
        ("method", results["method"]),
        (f"{results['metric']} on validation", f"{results['value']:.4f}"),
        ("frozen base, fitted head", "not measured" if baseline is None else f"{baseline:.4f}"),
        ("trained numbers", f"{results['trainable_parameters']:,}"),
        ("adapter file", f"{results['adapter_bytes']:,} bytes"),
        ("seed", str(results["seed"])),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return f"""---
library_name: capaft
base_model: {results["model"]}
pipeline_tag: text-classification
tags: [capaft, {results["method"]}]
---

# {results["method"]} on {results["data"]}

An adapter made with [capaft](https://pypi.org/project/capaft/). The file holds trained numbers and a seed; the
random numbers they multiply are drawn again from the seed wherever it is loaded.

| | |
|---|---|
{table}

Labels: {", ".join(results["labels"])}.

## Repeat

```
{command}
```
"""
