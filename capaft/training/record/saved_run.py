"""A finished adapter, opened again: its base model, with the adapter attached, and its task."""

from __future__ import annotations

import tempfile
import typing
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from torch import nn

from capaft.adapter.file import save_load
from capaft.adapter.file.adapter_file import ADAPTER, AdapterFile, read
from capaft.adapter.file.header import TaskRecord
from capaft.adapter.file.on_disk import attach_on_disk, keep_exact, skeleton_of
from capaft.adapter.file.other_head import HEAD
from capaft.config.choices import TASKS
from capaft.config.local_paths import LocalPaths, same_place
from capaft.config.open_options import ImportOptions, OpenOptions
from capaft.config.parts.model import ModelSettings
from capaft.config.parts.task import TaskSettings
from capaft.config.settings import check_range
from capaft.config.sources import resolve_settings
from capaft.config.train_config import TrainConfig
from capaft.exchange.peft_directory import read_peft
from capaft.exchange.peft_import import import_peft
from capaft.exchange.peft_task import record_of, task_of_peft
from capaft.model.demo import MODEL_NAME
from capaft.model.load import BaseModel, load_configuration, locate_model
from capaft.model.names import canonical_path
from capaft.model.origin import Origin
from capaft.model.skeleton import NeedsWeights
from capaft.model.stored_dtypes import stored_dtypes
from capaft.model.stored_form import StoredForm
from capaft.support.console import say_nothing
from capaft.support.errors import AdapterFileError, UsageError
from capaft.support.json_types import fits
from capaft.support.printable import printable
from capaft.tasks.base.registry import task_class
from capaft.tasks.base.task import Task
from capaft.training.record.found_run import find_adapter_file, find_peft
from capaft.training.record.named import report_named
from capaft.training.record.run_directory import RunDirectory

Say = Callable[[str], None]


class AdapterOfRun(NamedTuple):
    """An adapter that has been read.

    Attributes:
        file: the adapter file, read and verified.
        run: the run directory it lies in, if any.
        config: the run's configuration, if it lies in a run directory.
    """

    file: AdapterFile
    run: RunDirectory | None = None
    config: TrainConfig | None = None


@dataclass(frozen=True)
class SavedRun:
    """An adapter on its base model.

    Attributes:
        file: the adapter file, read and verified.
        run: the run directory it lies in, if any.
        config: the run's configuration, if it lies in a run directory.
        task: the task it was trained for.
        base: the base model, with the adapter attached.
        settings: those that the base model was loaded with.
        form: the tensors of the base model's checkpoint, if the model was opened without its weights.
    """

    file: AdapterFile
    run: RunDirectory | None
    config: TrainConfig | None
    task: Task
    base: BaseModel
    settings: ModelSettings
    form: StoredForm | None = None

    @property
    def model(self) -> nn.Module:
        """The model with the adapter attached, in evaluation mode."""
        return self.base.model


def open_run(
    name: str,
    options: OpenOptions | None = None,
    say: Say = say_nothing,
    *,
    as_stored: bool = False,
    on_disk: bool = False,
) -> SavedRun:
    """Open what a RUN names. A stranger may have made it: only `options` permit anything.

    Args:
        name: a run directory, a directory with one adapter file, an adapter file, the directory of a PEFT LoRA, or
            `user/name[@revision]` of the hub.
        options: the base model to put it on, if it is not the one that the run or the file names.
        say: called with a line for what its files claim, and for what they name and lies elsewhere.
        as_stored: load the base in the dtype of its checkpoint, unless the options name one, or the run quantised it.
        on_disk: leave the weights of the base on disk, but for what the adapter trains directly.

    Raises:
        NeedsWeights: they cannot be left there.
        UsageError: nothing is called so, or the base model cannot be loaded.
        AdapterFileError: the file is damaged, or belongs to another model.
    """
    options = options or OpenOptions()
    if directory := find_peft(name):
        if on_disk:
            raise NeedsWeights(f"{directory} is a PEFT adapter")
        return _open_peft(directory, options, say, as_stored=as_stored)
    if options.labels:
        raise UsageError("--labels names those of a PEFT adapter, and this adapter has names of its own; drop it")
    file, run, config = adapter = read_run(name, say)
    if on_disk:
        task, settings = _task_and_settings(adapter, options, say, as_stored=as_stored)
        base, form = skeleton_of(task, settings, file)
        attach_on_disk(form, file, options, "default")
        base.model.eval()
        return SavedRun(file, run, config, task, base, settings, form)
    task, base, settings = open_base(adapter, options, say, as_stored=as_stored)
    keep_exact(base.model, (key.removeprefix(HEAD) for key in file.tensors))
    save_load.load(base.model, file, rename=options.renames, allow_base_mismatch=options.allow_base_mismatch)
    base.model.eval()
    return SavedRun(file, run, config, task, base, settings)


def open_base(
    adapter: AdapterOfRun, options: OpenOptions, say: Say = say_nothing, *, as_stored: bool = False
) -> tuple[Task, BaseModel, ModelSettings]:
    """The task and the base model of an adapter, which is not on it yet, and the settings that it was loaded with.

    Args:
        adapter: the adapter, read.
        options: see `open_run`.
        say: see `open_run`.
        as_stored: see `open_run`.

    Raises:
        UsageError: the adapter has no task, or the base model cannot be loaded.
    """
    task, settings = _task_and_settings(adapter, options, say, as_stored=as_stored)
    return task, task.load_model(settings, seed=adapter.file.header.seed), settings


def _task_and_settings(
    adapter: AdapterOfRun, options: OpenOptions, say: Say, *, as_stored: bool
) -> tuple[Task, ModelSettings]:
    """The task of an adapter, and the settings to load its base model with."""
    file, _, config = adapter
    task = task_of_record(file.task, file.path)
    named = options.model or named_base(adapter, say)
    return task, _base_settings(options, Origin(named, file.base.revision), config, as_stored=as_stored)


def _open_peft(directory: Path, options: OpenOptions, say: Say, *, as_stored: bool) -> SavedRun:
    """Open a PEFT directory. It names no task of capaft; what is assumed of it, `say` says.

    Raises:
        UsageError: the base model cannot be loaded, or nothing tells the task.
        AdapterFileError: the directory is damaged, belongs to another model, or holds what no capaft adapter computes.
    """
    peft = read_peft(directory)
    named = options.model or _present_base(peft.config.base, peft.config.path, say)
    settings = _base_settings(options, Origin(named, peft.config.revision), None, as_stored=as_stored)
    wish = options if isinstance(options, ImportOptions) else ImportOptions(labels=options.labels)
    task, line = task_of_peft(peft, load_configuration(settings), wish, trust_remote_code=settings.trust_remote_code)
    say(f"{directory} is a PEFT adapter: {line}")
    base = task.load_model(settings, seed=0)
    if base.new_head and not set(base.head) & set(map(partial(canonical_path, base.model), peft.parameters)):
        raise UsageError(
            f"{directory} holds no head, and {named} has none for {task.name}; pass the --model with its head"
        )
    keep_exact(base.model, map(partial(canonical_path, base.model), peft.parameters))
    import_peft(base.model, peft, rename=options.renames)
    base.model.eval()
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch, ADAPTER)
        save_load.save(base.model, copy, base=base.base, task=record_of(task))
        file = replace(read(copy), path=directory)
    return SavedRun(file, None, None, task, base, settings)


def _base_settings(
    options: OpenOptions, named: Origin, config: TrainConfig | None, *, as_stored: bool
) -> ModelSettings:
    """The settings to load a base model with: the user's, else those of a run."""
    settings = ModelSettings(
        model=named.name,
        revision=None if options.model else named.revision,
        trust_remote_code=options.trust_remote_code,
        resize_embeddings=options.resize_embeddings or (config.resize_embeddings if config else False),
        base_dtype=options.base_dtype or (config.base_dtype if config else "float32"),
    )
    if as_stored and options.base_dtype is None and settings.base_dtype not in ("8bit", "4bit"):
        stored = stored_dtypes(Origin(settings.model, settings.revision))
        settings = replace(settings, base_dtype=(stored and stored.base_dtype) or settings.base_dtype)
    return settings


def read_run(name: str, say: Say = say_nothing) -> AdapterOfRun:
    """Read the adapter that RUN means, and the settings of its run: the one way from a name to an adapter.

    Args:
        name: a run directory, a directory with one adapter file, an adapter file, or `user/name[@revision]` of the hub.
        say: called with a line for what its files claim.

    Raises:
        UsageError: nothing is called so.
        AdapterFileError: the file is damaged.
    """
    path, run = find_adapter_file(name)
    return AdapterOfRun(read(path), run, settings_of_run(run.config, say) if run else None)


def named_base(adapter: AdapterOfRun, say: Say) -> str | None:
    """The base model that a run's settings name, or else the adapter file; None for the demo's.

    Raises:
        UsageError: none is named, or it is not here.
    """
    file, run, config = adapter
    name, source = file.base.name, file.path
    if run and config:
        named = name and LocalPaths.read(run.path).locate("model", name)
        name, source = config.model, run.config
        if named and not same_place(named, name or MODEL_NAME):
            say(f"warning: {source} names the base model {name or MODEL_NAME}, and {file.path} {named}")
    return _present_base(name, source, say, optional=bool(run))


def _present_base(name: str | None, source: Path, say: Say, *, optional: bool = False) -> str | None:
    """The base model that a file names, once it is known to be here; None for the demo's.

    Raises:
        UsageError: none is named, although it has to be, or it is not here.
    """
    if name is None and not optional:
        raise UsageError(f"{source} does not name its base model; pass --model")
    try:
        if name is not None:
            locate_model(name)
    except UsageError:
        raise UsageError(printable(f"{source} names the base model {name}, which is not here; pass --model")) from None
    report_named("model", name, source, say)
    return name


def task_of_record(record: TaskRecord | None, path: Path) -> Task:
    """The task that a file records.

    Args:
        record: the file's entry for its task.
        path: the file, for messages.

    Raises:
        UsageError: it records no task, or one that this capaft does not have.
        AdapterFileError: it records options that are unknown or out of range.
    """
    if record is None or record.name not in TASKS:
        raise UsageError(f"{path} was not trained for a task of this capaft; open it with capaft.load in Python")
    kind = task_class(record.name)
    types = typing.get_type_hints(kind)
    option_names = {field.name for field in fields(kind)} - {"labels", "max_length", "metric"}
    if unknown := sorted(record.options.keys() - option_names):
        raise AdapterFileError(
            f"{path}: its task has an option {unknown[0]} that this capaft does not know; upgrade capaft"
        )
    options = {"max_length": record.max_length, **record.options}
    for name, value in options.items():
        try:
            if not fits(value, types[name]):
                raise ValueError(f"must be of type {types[name].__name__}, got {value!r}")
            check_range(TaskSettings, name, value, str(value))
        except ValueError as error:
            raise AdapterFileError(f"{path}: its task's option {name} {error}; get the file again") from None
    try:
        return kind(record.labels, metric=record.metric, **options)
    except UsageError as error:
        raise AdapterFileError(f"{path}: its task is invalid: {error}") from None


def settings_of_run(path: Path, say: Say = say_nothing) -> TrainConfig:
    """The settings that a run has recorded.

    Args:
        path: its file of them.
        say: called with a line for each permission that it claims.

    Raises:
        UsageError: the file is damaged.
    """
    return resolve_settings(TrainConfig, flags={}, environ={}, file=path, say=say)[0]
