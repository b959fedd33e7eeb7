"""Fitted heads of earlier runs, in the user's cache: what several runs on the same base and data have in common.

One task is seldom trained once: methods, ranks and rates are compared, and each run would fit the same head first. A
head is found again by a digest of all that it follows from: every weight, every token, the settings and the versions.
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
from capaft.model.load import BaseModel
from capaft.support.errors import TrainingError
from capaft.support.files import write_atomically
from capaft.tasks.base.features import Features
from capaft.tasks.base.task import Task
from capaft.training.setup.fitted_head import FittedHead

# Of some kilobytes each; the oldest go first.
KEPT_STARTS = 256


@dataclass(frozen=True)
class Start:
    """What fitting gave a run.

    Attributes:
        head: where training starts.
        baseline: score of the frozen base under the best head; None where it was not asked for.
    """

    head: FittedHead
    baseline: float | None


def start_key(task: Task, base: BaseModel, examples: Iterable[Features], settings: Mapping[str, Any]) -> str | None:
    """The digest that a start is found again by, or None if not all that it follows from can be told in time.

    Args:
        task: the task.
        base: the base model, as loaded.
        examples: those that the head is fitted on, and those that it is scored on.
        settings: whatever else the numbers depend on.
    """
    import transformers

    examples = list(examples)
    if not all(isinstance(each, list) for part in examples for each in part.inputs.values()):
        return None
    made_with = {
        "capaft": capaft.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "scikit-learn": metadata.version("scikit-learn"),
        "numpy": np.__version__,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }
    model, processor = base.model, base.processor
    state = hashlib.blake2b(digest_size=16)
    state.update(json.dumps([made_with, settings, task.name, task.labels, task.metric, task.options()]).encode())
    state.update(f"{type(model)} {model.config.to_json_string(use_diff=False)}".encode())
    state.update(f"{getattr(processor, 'pad_token_id', None)} {getattr(processor, 'padding_side', None)}".encode())
    for part in examples:
        state.update(json.dumps([part.inputs, part.lengths.tolist(), part.references.tolist()]).encode())
    for name, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, torch.Tensor):
            state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            state.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


def cached_start(key: str) -> Start | None:
    """What an earlier run kept under a key, or None."""
    with suppress(OSError, ValueError, KeyError, SafetensorError):
        tensors = safetensors.numpy.load(_path(key).read_bytes())
        baseline = tensors.get("baseline")
        return Start(
            FittedHead(tensors["weight"], tensors["bias"]), None if baseline is None else float(baseline.item())
        )
    return None


def keep_start(key: str, start: Start) -> None:
    """Keep a start for later runs, if the cache can be written to; a run does not need it."""
    tensors = {"weight": start.head.weight, "bias": start.head.bias}
    if start.baseline is not None:
        tensors["baseline"] = np.array(start.baseline)
    with suppress(OSError, ValueError, TrainingError):
        path = _path(key)
        write_atomically(path, safetensors.numpy.save({name: np.ascontiguousarray(t) for name, t in tensors.items()}))
        for old in sorted(_all(path.parent), key=lambda each: each.stat().st_mtime, reverse=True)[KEPT_STARTS:]:
            old.unlink(missing_ok=True)


def _path(key: str) -> Path:
    return cached_assets_path("capaft", "heads") / f"{key}.safetensors"


def _all(directory: Path) -> Iterator[Path]:
    return directory.glob("*.safetensors")
