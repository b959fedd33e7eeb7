"""A bank of tiny adapters on a tiny checkpoint, with the labels and tasks that they would have after a training."""

from __future__ import annotations

from pathlib import Path

import tiny_job
import torch
from tiny import scramble
from transformers import BertModel

import capaft
from capaft.adapter.file.header import TaskRecord
from capaft.config.parts.model import ModelSettings
from capaft.model.origin import Origin
from capaft.tasks.base.task import Task
from capaft.tasks.text_classification import TextClassification

LABELS: dict[str, tuple[str, ...]] = {
    "mood": ("bad", "good"),
    "topic": ("sport", "politics", "weather"),
    "spam": ("no", "yes"),
    "star": tuple("12345"),
}


def checkpoint(directory: Path) -> Path:
    """A checkpoint without a head, and its tokenizer."""
    return tiny_job.bert(directory, BertModel)


def write_adapter(
    file: Path,
    base: Path,
    labels: tuple[str, ...],
    values: int,
    seed: int = 1,
    method: str = "nola",
    kind: type[Task] = TextClassification,
    record: TaskRecord | None = None,
) -> Path:
    """A file of a classifier whose parameters are random.

    Args:
        file: the file.
        base: the checkpoint.
        labels: its labels.
        values: seed of the parameters.
        seed: seed of the adapter.
        method: its method stack.
        kind: class of its task.
        record: what the file says about its task, if not that.
    """
    task = kind(labels, max_length=32)
    made = task.load_model(ModelSettings(model=str(base)), seed=seed)
    options = {"k": 9} if "nola" in method else {}
    adapter = capaft.attach(made.model, method, rank=2, seed=seed, head=made.head, **options)
    scramble(adapter, seed=values)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(values)
        for parameter in adapter.substitutes.tensors(made.model).values():
            parameter.add_(0.3 * torch.randn_like(parameter))
    record = record or TaskRecord(task.name, labels, task.max_length, task.metric, task.options())
    file.parent.mkdir(parents=True, exist_ok=True)
    capaft.save(made.model, file, base=Origin(str(base)), task=record)
    return file


def write_bank(directory: Path, base: Path) -> Path:
    """A directory with an adapter for each of `LABELS`, of two families."""
    for index, (name, labels) in enumerate(LABELS.items()):
        write_adapter(
            directory / f"{name}.safetensors", base, labels, index, method="ia3" if name == "spam" else "nola"
        )
    return directory
