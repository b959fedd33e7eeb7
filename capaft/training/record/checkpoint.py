"""Checkpoints, from which a run goes on exactly where it was. Tensors as safetensors, the rest as JSON, no pickle.

A checkpoint is a directory that is written aside, flushed to the disk and renamed, so it is there whole or not at all.
Batches and dropout are functions of the seed and the step, so no state of a generator is in it.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from capaft.support.console import say_nothing
from capaft.support.errors import TrainingError, UsageError
from capaft.support.files import flush_directory, write_atomically
from capaft.support.json_types import fitting
from capaft.training.early_stopping import Best

TENSORS = "tensors.safetensors"
STATE = "state.json"
# The last but one is kept, in case a disk loses what it reported as written.
KEPT_CHECKPOINTS = 2
# Between the keys of mappings within one another.
_NESTED = "/"
_DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, safetensors.SafetensorError)
_NAME = re.compile(r"step-(\d{9})")
# A name in the optimizer's state: the number of a parameter, and a key.
_ENTRY = re.compile(r"\d+\.")


@dataclass(frozen=True)
class Progress:
    """The progress of a run.

    Attributes:
        step: optimizer steps done.
        best: the best evaluation so far.
        seconds: time spent training, over all starts.
        baseline: score of the frozen base, if it was measured.
        evaluated: False if the evaluation that is due after this step was interrupted.
    """

    step: int = 0
    best: Best = field(default_factory=Best)
    seconds: float = 0.0
    baseline: float | None = None
    evaluated: bool = True


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that has been read.

    Attributes:
        progress: how far the run was.
        made_with: versions, device and settings of the run that wrote it; see `environment` in `resume.py`.
        made_from: digests of its data and its base model; see `origin_digests` in `resume.py`.
        tensors: parameters as `parameter.<name>`, optimizer state as `optimizer.<index>.<key>`.
        optimizer: entries of the optimizer's state that are not tensors, by `<index>.<key>`.
        scaler: state of the loss scaler of fp16; empty otherwise.
    """

    progress: Progress
    made_with: dict[str, str]
    made_from: dict[str, str]
    tensors: dict[str, Tensor]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]

    @staticmethod
    def capture(
        progress: Progress,
        trained: dict[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        scaler: Any,
        made_with: dict[str, str],
        made_from: dict[str, str],
    ) -> Checkpoint:
        """The state of a run as it is now.

        Args:
            progress: how far the run has come.
            trained: trainable parameters by name.
            optimizer: steps on them.
            scaler: the loss scaler of fp16, or None.
            made_with: see the class.
            made_from: see the class.
        """
        tensors = {f"parameter.{name}": parameter.detach().cpu().contiguous() for name, parameter in trained.items()}
        plain: dict[str, Any] = {}
        for index, values in optimizer.state_dict()["state"].items():
            for key, value in _leaves(values):
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{index}.{key}"] = value.detach().cpu().contiguous()
                else:
                    plain[f"{index}.{key}"] = value
        state = scaler.state_dict() if scaler is not None else {}
        return Checkpoint(progress, made_with, made_from, tensors, plain, state)

    def restore(self, trained: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, scaler: Any) -> None:
        """Give parameters, optimizer and scaler the state they had.

        Raises:
            UsageError: they do not belong to the run that wrote it.
        """
        missing = torch.empty(0, device="cpu")
        stored = {name: self.tensors.get(f"parameter.{name}", missing) for name in trained}
        for name, parameter in trained.items():
            if stored[name] is missing or stored[name].shape != parameter.shape:
                raise UsageError(f"the checkpoint does not fit this run: {name} differs; start anew with --overwrite")
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(stored[name])
        optimizer.load_state_dict(self._optimizer_state(optimizer))
        if scaler is not None and self.scaler:
            scaler.load_state_dict(self.scaler)

    def _optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        state: dict[int, dict[str, Any]] = {}
        values = {
            name.removeprefix("optimizer."): t for name, t in self.tensors.items() if name.startswith("optimizer.")
        }
        for path, value in (values | self.optimizer).items():
            index, _, key = path.partition(".")
            *outer, last = key.split(_NESTED)
            place = state.setdefault(int(index), {})
            for name in outer:
                place = place.setdefault(name, {})
            place[last] = value
        return {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}


def write_checkpoint(directory: Path, checkpoint: Checkpoint) -> None:
    """Leave a checkpoint in a run's directory of checkpoints, and drop all but the last before it.

    Raises:
        TrainingError: the disk is full or cannot be written; older checkpoints are untouched.
    """
    state: dict[str, Any] = {
        "progress": asdict(checkpoint.progress),
        "made_with": checkpoint.made_with,
        "made_from": checkpoint.made_from,
        "optimizer": checkpoint.optimizer,
        "scaler": checkpoint.scaler,
    }
    encoded = safetensors.torch.save(checkpoint.tensors)
    state["digest"] = _digest(encoded, state)
    final = _path(directory, checkpoint.progress.step)
    aside = final.with_name(f".{final.name}")
    try:
        try:
            directory.mkdir(exist_ok=True)
            aside.mkdir(exist_ok=True)
            write_atomically(aside / TENSORS, encoded, make_parents=False)
            write_atomically(aside / STATE, json.dumps(state, indent=1) + "\n", make_parents=False)
            if final.exists():
                shutil.rmtree(final)
            aside.rename(final)
            flush_directory(directory)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        prune_checkpoints(directory, checkpoint.progress.step)
    except OSError as error:
        raise TrainingError(f"cannot write {final}: {error.strerror or error}; older ones are kept") from None


def prune_checkpoints(directory: Path, step: int) -> None:
    """Drop all checkpoints but that of a step and the last before it.

    A checkpoint of a later step could not be read when the run went on from an earlier one.
    """
    final = _path(directory, step)
    checkpoints = _all(directory)
    older = [path for path in checkpoints if path.name < final.name]
    for path in checkpoints:
        if path not in (final, *older[: KEPT_CHECKPOINTS - 1]):
            shutil.rmtree(path, ignore_errors=True)


def newest_checkpoint(directory: Path, say: Callable[[str], None] = say_nothing) -> Checkpoint | None:
    """The last checkpoint that can be read, or None.

    Args:
        directory: a run's directory of checkpoints.
        say: called with a line for each that is damaged.

    Raises:
        UsageError: there are checkpoints, but none can be read.
    """
    checkpoints = _all(directory)
    for older, path in zip(reversed(range(len(checkpoints))), checkpoints, strict=True):
        try:
            return _read(path)
        except _DAMAGED:
            say(f"warning: the checkpoint {path} is damaged{'; the one before it is used' if older else ''}")
    if checkpoints:
        raise UsageError(f"no checkpoint in {directory} can be read; start anew with --overwrite")
    return None


def _read(path: Path) -> Checkpoint:
    """Read one checkpoint; whatever is raised says that it is damaged."""
    state = json.loads((path / STATE).read_text(encoding="utf-8"))
    encoded = (path / TENSORS).read_bytes()
    progress = state["progress"]
    # A directory under another's name is as wrong as its content.
    if state.pop("digest") != _digest(encoded, state) or _path(path.parent, progress["step"]) != path:
        raise ValueError("other bytes than were written")
    fitting(progress["best"], Best)
    fitting(progress | {"best": Best()}, Progress)
    fitting({name: value for name, value in state.items() if name != "progress"}, Checkpoint)
    if not all(_ENTRY.match(key) for key in state["optimizer"]):
        raise ValueError("an optimizer's state without a parameter")
    return Checkpoint(
        Progress(**progress | {"best": _best(progress["best"])}),
        state["made_with"],
        state["made_from"],
        safetensors.torch.load(encoded),
        state["optimizer"],
        state["scaler"],
    )


def _best(record: dict[str, Any]) -> Best:
    """The best evaluation, from JSON, which has lists for pairs.

    Raises:
        ValueError: its score is none of its scores.
    """
    best = Best(**record)
    if best.value is not None and best.value not in best.scores.values():
        raise ValueError("a best score that no evaluation gave")
    return replace(best, interval=(best.interval[0], best.interval[1]) if best.interval else None)


def _leaves(state: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The values of an optimizer's state; bitsandbytes nests its own in a mapping."""
    for key, value in state.items():
        if isinstance(value, dict):
            yield from ((f"{key}{_NESTED}{inner}", leaf) for inner, leaf in _leaves(value))
        else:
            yield key, value


def _digest(tensors: bytes, state: dict[str, Any]) -> str:
    """A digest that shows if a disk returned other bytes than were written."""
    digest = hashlib.blake2b(tensors, digest_size=16)
    digest.update(json.dumps(state).encode())
    return digest.hexdigest()


def _path(directory: Path, step: int) -> Path:
    return directory / f"step-{step:09d}"


def _all(directory: Path) -> list[Path]:
    """The checkpoints of a run, the newest first, without any that was being written when the run died."""
    return sorted((path for path in directory.glob("step-*") if _NAME.fullmatch(path.name)), reverse=True)
