"""Checks that a resumed run is still the same: its settings, its data and base model, and its machine.

Settings and origin must be what they were, or the run is refused. Another machine or version goes on too, with a
warning that the bytes will not be those of an uninterrupted run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import fields, is_dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch

import capaft
from capaft.adapter.file.fingerprint import weight_samples
from capaft.config.local_paths import PLACES, may_be_same_place
from capaft.config.settings import flag_of
from capaft.config.train_config import SIZES, TrainConfig
from capaft.data.lazy import LazySequence
from capaft.support.errors import UsageError
from capaft.tasks.base.features import Features
from capaft.training.accelerator import device_name
from capaft.training.early_stopping import Best
from capaft.training.parallel.processes import Processes
from capaft.training.record.run_directory import RunDirectory
from capaft.training.record.saved_run import settings_of_run
from capaft.training.setup.job import Job

# Settings that may differ from those that the run began with: they fit it to the machine, or only report it. The
# adapter that it started from is compared by its content.
_FREE = frozenset(
    ["micro_batch_size", "eval_batch_size", "gradient_checkpointing", "checkpoint_seconds", "tracker", "head_cache"]
).union(["trust_remote_code", "timeout", "init_from", "allow_base_mismatch"])


# Settings of the length, which is the one thing that may be another once a run is finished.
LENGTH = {"epochs", "max_steps"}
# The name of `settings_digest` among the digests of a checkpoint.
SETTINGS = "settings"


def check_same_settings(run: RunDirectory, config: TrainConfig, chosen: Collection[str] = ()) -> None:
    """Refuse to go on with a run under other settings.

    Args:
        run: the run.
        config: the present settings, every choice filled in.
        chosen: names of the settings that the user set.

    Raises:
        UsageError: names the first setting that differs, one of the user's if there is any, and the length last.
    """
    changed = changed_settings(run, config, chosen)
    for name in sorted(changed, key=lambda name: (name in LENGTH, name not in chosen)):
        before, now = changed[name]
        cause = "budget" if name in SIZES and name not in chosen and "budget" in chosen else name
        by = f" as by {flag_of(cause)}" if cause != name else ""
        raise UsageError(
            f"--resume: {run.path} was started with {flag_of(name)} {_shown(before)}, not {_shown(now)}{by}; "
            f"drop {flag_of(cause)}, or start anew in another --output"
        )


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def changed_settings(
    run: RunDirectory, config: TrainConfig, chosen: Collection[str] = ()
) -> dict[str, tuple[Any, Any]]:
    """The value that a run began with, and the present one, of each setting that differs and should not.

    A choice that both leave to capaft is the same, although earlier versions did not record all that they made, and so
    is a path that is gone and one that is called the same: what they change shows in `origin_digests`.
    """
    saved = settings_of_run(run.config)
    pairs = {name: (before, getattr(config, name)) for name, before in vars(saved).items() if name not in _FREE}
    places = {name for name in pairs.keys() & set(PLACES) if all(pairs[name]) and may_be_same_place(*pairs[name])}
    left_open = {name for name, (before, _) in pairs.items() if before is None and name not in chosen}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1] and name not in left_open | places}


def origin_digests(job: Job) -> dict[str, str]:
    """Digests of a job's data and of sample weights of its base model, by what they are of.

    Images and recordings count by their number, labels and lengths, since reading them all takes long.
    """
    weights = weight_samples(job.base.model, job.plan)
    return {
        "training data": _features_digest(job.train),
        "validation data": _features_digest(job.validation),
        "list of labels": _digest(job.task.labels),
        "base model": _digest([weights]),
    }


def settings_digest(config: TrainConfig) -> str:
    """A digest of the settings of a run that may not change, so that a checkpoint of another run is noticed."""
    # Model and data are compared by their content, whatever they are called.
    free = {*_FREE, *LENGTH, *PLACES, "restarts"}
    return _digest([name, str(value)] for name, value in sorted(vars(config).items()) if name not in free)


def check_same_origin(
    before: Mapping[str, str], now: Mapping[str, str], run: object, made_with: Mapping[str, str]
) -> None:
    """Refuse to go on with other data, labels or another base model.

    Args:
        before: `origin_digests` as the checkpoint has them.
        now: those of the job at hand.
        run: names the run in the message.
        made_with: the `environment` of the checkpoint; another version of capaft may read the same data differently.

    Raises:
        UsageError: names what differs.
    """
    version = made_with.get("capaft")
    reader = f"capaft {version}" if version else "an earlier capaft"
    by = "" if version == capaft.__version__ else f", or {reader} read it otherwise"
    for name, digest in now.items():
        if name == SETTINGS:
            # Another version has other settings; an earlier one recorded no digest.
            if not by and before.get(name, digest) != digest:
                raise UsageError(
                    f"--resume: the checkpoint in {run} is one of another run; restore it, or start anew in another "
                    "--output"
                )
        elif before.get(name) != digest:
            raise UsageError(
                f"--resume: the {name} of {run} has changed{by}; restore it, or start anew in another --output"
            )


def check_same_scale(best: Best, run: object) -> None:
    """Refuse to go on with scores on another scale, which no later one could beat.

    Args:
        best: the best evaluation so far.
        run: names the run in the message.

    Raises:
        UsageError: an earlier capaft scored BLEU and chrF from 0 to 100.
    """
    if any(best.scores.get(name, 0.0) > 1 for name in ("bleu", "chrf")):
        raise UsageError(
            f"--resume: {run} has BLEU and chrF from 0 to 100, which are now from 0 to 1; start anew in another "
            "--output"
        )


def environment(config: TrainConfig, processes: Processes) -> dict[str, str]:
    """Versions, device and settings that decide the bytes of a run beside its configuration, by name."""
    import transformers

    return {
        "capaft": capaft.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": str(torch.get_num_threads()),
        "processes": str(processes.count),
        "device": device_name(),
        "--micro-batch-size": str(config.micro_batch_size),
        "--gradient-checkpointing": str(config.gradient_checkpointing),
    }


def warn_of_other_environment(before: dict[str, str], now: dict[str, str], say: Callable[[str], None]) -> None:
    """Warn in one line of changes to the `environment`, which may change the bytes of the result."""
    changes = [f"{name} {before.get(name)} -> {value}" for name, value in now.items() if before.get(name) != value]
    if changes:
        say(f"warning: not the same bytes as without the interruption: {', '.join(changes)}")


def _features_digest(features: Features) -> str:
    # Images and recordings are too many to read; their labels and lengths have to do.
    inputs = chain.from_iterable(features.inputs.get(name, ()) for name in ("input_ids", "labels", "start", "end"))
    return _digest(chain(features.lengths, inputs, _entries(features.references)))


def _entries(references: Any) -> Iterable[Any]:
    """The entries of references, some at a time; those of each field if they have several."""
    if isinstance(references, list | np.ndarray | LazySequence):
        return references
    if is_dataclass(references):
        return chain.from_iterable(_entries(getattr(references, field.name)) for field in fields(references))
    return [references]


def _digest(entries: Iterable[Any]) -> str:
    state = hashlib.blake2b(digest_size=16)
    for entry in entries:
        state.update(json.dumps(entry, default=_as_json).encode() + b"\n")
    return state.hexdigest()


def _as_json(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, LazySequence):
        return list(value)
    return [getattr(value, field.name) for field in fields(value)]
