"""Fitted heads of earlier runs, in the user's cache, for other runs on the same base and data.

A task is seldom trained only once: methods, ranks and rates are compared, and each run would fit the same head first. A
cached head is identified by a digest of all that decides it: every weight, every token, the settings and the versions.
Images and recordings are read too late for that, and the code of a repository may change; their heads are fitted anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from huggingface_hub import cached_assets_path
from safetensors import SafetensorError

import capaft
from capaft.data.spool import StoredColumn
from capaft.model.load import BaseModel
from capaft.support.errors import TrainingError
from capaft.support.files import write_atomically
from capaft.tasks.base.features import Features
from capaft.tasks.base.task import Task
from capaft.training.accelerator import device_name
from capaft.training.setup.fitted_head import FittedHead

# A few kilobytes each; beyond this many, the oldest are removed.
KEPT_STARTS = 256


@dataclass(frozen=True)
class Start:
    """The outcome of fitting a head.

    Attributes:
        head: the head that training starts from.
        baseline: score of the frozen base under the best head; None if it was not measured.
    """

    head: FittedHead
    baseline: float | None


def start_key(task: Task, base: BaseModel, examples: Iterable[Features], settings: Mapping[str, Any]) -> str | None:
    """The digest of all that decides a start, or None if some of it is read too late.

    Args:
        task: the task.
        base: the base model, as loaded.
        examples: those that the head is fitted on, and those that it is scored on, if any.
        settings: everything else that decides the head or its score.
    """
    import transformers

    examples = list(examples)
    kinds = (list, StoredColumn)
    if not all(isinstance(column, kinds) for features in examples for column in features.inputs.values()):
        return None
    made_with = {
        "capaft": capaft.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "scikit-learn": metadata.version("scikit-learn"),
        "numpy": np.__version__,
        "threads": torch.get_num_threads(),
        "device": device_name(),
    }
    model, processor = base.model, base.processor
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps([made_with, settings, task.name, task.labels, task.metric, task.options()]).encode())
    digest.update(f"{type(model)} {model.config.to_json_string(use_diff=False)}".encode())
    digest.update(f"{getattr(processor, 'pad_token_id', None)} {getattr(processor, 'padding_side', None)}".encode())
    for features in examples:
        for name, column in features.inputs.items():
            digest.update(json.dumps([name, len(column)]).encode())
            for entry in column:
                digest.update(json.dumps(entry).encode())
        for numbers in (features.lengths, features.references):
            digest.update(f"{numbers.dtype} {numbers.shape}".encode() + np.ascontiguousarray(numbers).tobytes())
    for name, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, torch.Tensor):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def cached_start(key: str) -> Start | None:
    """The start that an earlier run kept under a key, or None."""
    with suppress(OSError, ValueError, KeyError, SafetensorError):
        tensors = safetensors.numpy.load(_path(key).read_bytes())
        baseline = tensors.get("baseline")
        return Start(
            FittedHead(tensors["weight"], tensors["bias"]), None if baseline is None else float(baseline.item())
        )
    return None


def keep_start(key: str, start: Start) -> None:
    """Keep a start for later runs; do nothing if the cache cannot be written, since no run depends on it."""
    tensors = {"weight": start.head.weight, "bias": start.head.bias}
    if start.baseline is not None:
        tensors["baseline"] = np.array(start.baseline)
    with suppress(OSError, ValueError, TrainingError):
        path = _path(key)
        write_atomically(path, safetensors.numpy.save({name: np.ascontiguousarray(t) for name, t in tensors.items()}))
        newest_first = sorted(_all(path.parent), key=lambda path: path.stat().st_mtime, reverse=True)
        for old in newest_first[KEPT_STARTS:]:
            old.unlink(missing_ok=True)


def _path(key: str) -> Path:
    return cached_assets_path("capaft", "heads") / f"{key}.safetensors"


def _all(directory: Path) -> Iterator[Path]:
    return directory.glob("*.safetensors")
