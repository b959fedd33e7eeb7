"""The model card of a run: what it is, what it scored, how to use it, and how to repeat it."""

from __future__ import annotations

from capaft.config.command_line import command_text
from capaft.config.train_config import TrainConfig
from capaft.model.origin import literal, loading_code
from capaft.support.markdown import fenced, front_matter, inline
from capaft.training.record.results import Results, score_text
from capaft.training.setup.job import Job


def card_text(results: Results, job: Job, settings: TrainConfig) -> str:
    """The card as Markdown with the metadata block that the Hugging Face hub reads.

    Args:
        results: the results of the run, its directory by the name that may be shared.
        job: the run's job.
        settings: every setting of the run, as its `run.yaml` has them.
    """
    metadata = {
        "library_name": "capaft",
        "base_model": job.base.base.hub_id,
        "pipeline_tag": job.task.pipeline_tag,
        "tags": ["capaft", results.method],
    }
    labels = f"Labels: {', '.join(map(inline, results.labels))}.\n\n" if results.labels else ""
    several = f" --processes {results.processes}" if results.processes > 1 else ""
    table = "\n".join(f"| {name} | {value} |" for name, value in _facts(results))
    return f"""{front_matter(metadata)}
# {inline(results.method)} on {inline(results.data)}

An adapter made with capaft. The file holds trained parameters and a seed; the random numbers that they multiply are
drawn again from the seed wherever it is loaded.

| | |
|---|---|
{table}

{labels}## Use

The adapter goes onto its base model; labels and head come from the file.

{fenced(_use(results.output, job), "python")}

## Repeat

This command repeats the run where it began, byte for byte on the same machine and versions:

{fenced(command_text("train", settings) + several)}
"""


def _use(directory: str, job: Job) -> str:
    """Python code that loads base model and adapter."""
    auto_class, processor = job.task.auto_class_for(job.base.model.config), job.task.processor
    kind = "tokenizer" if processor == "AutoTokenizer" else "processor"
    return f"""import capaft
from transformers import {", ".join(sorted([auto_class, processor]))}

{kind} = {processor}.from_pretrained({loading_code(job.base.base)})
model = {auto_class}.from_pretrained({loading_code(job.base.base)})
capaft.load(model, {literal(directory)})"""


def _facts(results: Results) -> list[tuple[str, str]]:
    """The rows of the card's table."""
    baseline, names = results.baseline, results.score_names
    others = {name: score for name, score in results.scores.items() if name != results.metric}
    return [
        ("base model", inline(results.model)),
        ("data", inline(results.data)),
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
