"""A finished adapter, opened again: its base model, with the adapter attached, and its task."""

from __future__ import annotations

import typing
from dataclasses import dataclass, fields
from pathlib import Path

from torch import nn

from capaft.adapter.file import save_load
from capaft.adapter.file.adapter_file import AdapterFile, read
from capaft.adapter.file.other_head import HEAD
from capaft.config.choices import TASKS
from capaft.config.open_options import OpenOptions
from capaft.config.parts.model import ModelSettings
from capaft.config.parts.task import TaskSettings
from capaft.config.settings import check_range
from capaft.config.sources import resolve_settings
from capaft.config.train_config import TrainConfig
from capaft.model.load import BaseModel
from capaft.support.errors import AdapterFileError, UsageError
from capaft.tasks.base.registry import task_class
from capaft.tasks.base.task import Task
from capaft.training.record.run_directory import RunDirectory, find_adapter_file


@dataclass(frozen=True)
class SavedRun:
    """An adapter on its base model.

    Attributes:
        file: the adapter file, read and verified.
        run: the run directory it lies in, if any.
        config: the run's configuration, if it lies in a run directory.
        task: the task it was trained for.
        base: the base model, with the adapter attached.
    """

    file: AdapterFile
    run: RunDirectory | None
    config: TrainConfig | None
    task: Task
    base: BaseModel

    @property
    def model(self) -> nn.Module:
        """The model with the adapter attached, in evaluation mode."""
        return self.base.model


def open_run(name: str, options: OpenOptions | None = None) -> SavedRun:
    """Open a run directory or an adapter file.

    Args:
        name: a run directory or an adapter file.
        options: the base model to put it on, if it is not the one that the run or the file names.

    Raises:
        UsageError: nothing is called so, or the base model cannot be loaded.
        AdapterFileError: the file is damaged, or belongs to another model.
    """
    options = options or OpenOptions()
    path, run = find_adapter_file(name)
    file = read(path)
    task = _task(file)
    config = _config(run.config) if run else None
    model = options.model or (config.model if config else file.base.name)
    if model is None and config is None:
        raise UsageError(f"{path} does not name its base model; pass --model")
    settings = ModelSettings(
        model=model,
        revision=None if options.model else file.base.revision,
        trust_remote_code=config.trust_remote_code if config else False,
        resize_embeddings=options.resize_embeddings or (config.resize_embeddings if config else False),
        base_dtype=options.base_dtype or (config.base_dtype if config else "float32"),
    )
    base = task.load_model(settings, seed=file.header.seed)
    parameters = base.named_parameters()
    for key in (key.removeprefix(HEAD) for key in file.tensors):
        if key in parameters:
            # Trained as float32 beside a base of fewer bits.
            parameters[key].data = parameters[key].data.float()
    save_load.load(base.model, file, rename=options.renames, allow_base_mismatch=options.allow_base_mismatch)
    base.model.eval()
    return SavedRun(file, run, config, task, base)


def _task(file: AdapterFile) -> Task:
    """The task that a file records.

    Raises:
        UsageError: it records no task, or one that this capaft does not have.
        AdapterFileError: it records options that are unknown or out of range.
    """
    record = file.task
    if record is None or record.name not in TASKS:
        raise UsageError(f"{file.path} was not trained for a task of this capaft; open it with capaft.load in Python")
    kind = task_class(record.name)
    types = typing.get_type_hints(kind)
    option_names = {field.name for field in fields(kind)} - {"labels", "max_length", "metric"}
    if unknown := sorted(record.options.keys() - option_names):
        raise AdapterFileError(
            f"{file.path}: its task has an option {unknown[0]} that this capaft does not know; upgrade capaft"
        )
    options = {"max_length": record.max_length, **record.options}
    for name, value in options.items():
        try:
            # A whole number may stand for a fraction, but a truth value for no number.
            if type(value) is not types[name] and (type(value), types[name]) != (int, float):
                raise ValueError(f"must be of type {types[name].__name__}, got {value!r}")
            check_range(TaskSettings, name, value, str(value))
        except ValueError as error:
            raise AdapterFileError(f"{file.path}: its task's option {name} {error}; get the file again") from None
    try:
        return kind(record.labels, metric=record.metric, **options)
    except UsageError as error:
        raise AdapterFileError(f"{file.path}: its task is invalid: {error}") from None


def _config(path: Path) -> TrainConfig:
    return resolve_settings(TrainConfig, flags={}, environ={}, file=path)[0]
