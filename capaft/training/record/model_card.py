"""The model card of a run: what it is, what it scored, how to use it, and how to repeat it."""

from __future__ import annotations

from capaft.config.command_line import command_text
from capaft.config.local_paths import PASSED
from capaft.config.train_config import TrainConfig
from capaft.methods.stack import settings_text
from capaft.model.origin import literal, loading_code
from capaft.support.counting import counted
from capaft.support.markdown import fenced, front_matter, inline
from capaft.training.record.results import Results, interval_text, score_text
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
    passed = ", with its rows, which were passed in Python, as the data" if settings.data == PASSED else ""
    table = "\n".join(f"| {inline(name)} | {inline(value)} |" for name, value in _facts(results))
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

This command repeats the run where it began{passed}, byte for byte on the same machine and versions:

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
capaft.load(model, {literal(directory)})  # the directory of this card, wherever it is now"""


def _facts(results: Results) -> list[tuple[str, str]]:
    """The rows of the card's table."""
    names, versions = results.score_names, results.machine
    others = {name: score for name, score in results.scores.items() if name != results.metric}
    return [
        ("base model", results.model),
        ("data", results.data),
        *([("started from", f"{origin['run']} (digest {origin['digest']})")] if (origin := results.init_from) else []),
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
    return results.baseline_name, score_text(results.baseline)
