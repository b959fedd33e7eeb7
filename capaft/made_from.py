"""What a run was made from, as digests that a checkpoint keeps: a resumed run must go on with the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import fields
from itertools import chain
from typing import Any

import numpy as np

from capaft.adapter.file.fingerprint import weight_samples
from capaft.job import Job
from capaft.support.errors import UsageError
from capaft.tasks.base.features import Features


def made_from(job: Job) -> dict[str, str]:
    """Digests of a job's data and sample weights of its base model, by what they are of.

    Images and recordings are told by their number, their labels and their lengths, since reading them all takes long.
    """
    weights = weight_samples(job.base.model, job.plan)
    return {
        "training data": _digest(job.train),
        "validation data": _digest(job.validation),
        "list of labels": _hexadecimal(job.task.labels),
        "base model": _hexadecimal([weights]),
    }


def check_same(before: dict[str, str], now: dict[str, str], run: object) -> None:
    """Refuse to go on with something else.

    Raises:
        UsageError: names what differs.
    """
    for name, digest in now.items():
        if before.get(name) != digest:
            raise UsageError(
                f"--resume goes on with {run}, and its {name} is not what it was; put it back as it was, or start anew "
                "in another --output"
            )


def _digest(features: Features) -> str:
    truth = features.references
    each = truth if isinstance(truth, list | np.ndarray) else [truth]
    return _hexadecimal(chain(features.lengths, features.inputs.get("input_ids", ()), each))


def _hexadecimal(entries: Iterable[Any]) -> str:
    state = hashlib.blake2b(digest_size=16)
    for entry in entries:
        state.update(json.dumps(entry, default=_as_json).encode() + b"\n")
    return state.hexdigest()


def _as_json(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return [getattr(value, each.name) for each in fields(value)]
