"""The settings of a run that carries another adapter on: the adapter's own where the user leaves them open."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import fields, replace
from typing import Any

from capaft.adapter.file.adapter_file import AdapterFile
from capaft.config.choices import TASKS
from capaft.config.settings import flag_of
from capaft.config.train_config import TrainConfig
from capaft.methods.stack import Stack, stack_options
from capaft.model.demo import MODEL_NAME
from capaft.support.errors import UsageError
from capaft.tasks.base.registry import task_class
from capaft.training.record.saved_run import AdapterOfRun, named_base
from capaft.training.setup.method import chosen_stack

_FIELDS = {field.name: field for field in fields(TrainConfig)}
# Another choice of layers may mean the same sites, which are compared once the model is there.
_TARGETS = ("target_modules", "exclude_modules", "layers")
# Settings of the run that the adapter was trained by, without which it does not score as it did there.
_OF_RUN = ("base_dtype", "precision", "resize_embeddings", "modules_to_save")


def carried_settings(
    config: TrainConfig, adapter: AdapterOfRun, chosen: Collection[str], say: Callable[[str], None]
) -> TrainConfig:
    """The settings with those of an adapter filled in where the user leaves them open.

    Method, options, seed and head decide what its trained parameters mean, so they cannot be others.

    Args:
        config: the resolved settings.
        adapter: the adapter that the run starts from.
        chosen: names of the settings that the user set.
        say: called with a line for a base model that its files name and that lies elsewhere.

    Raises:
        UsageError: the user set another method, option, seed or head, or its base model is not here.
    """
    given = {name for name, field in _FIELDS.items() if name in chosen or getattr(config, name) != field.default}
    if config.budget is not None:
        raise UsageError("--budget and --init-from cannot be used together: the adapter has its size; drop --budget")
    task = _of_task(adapter.file, config, given)
    fixed = _of_stack(adapter.file)
    _check_stack(config, fixed, adapter.file.header.method, given)
    if "task" in task:
        fixed |= _head(config, adapter.file, given)
    targets: dict[str, Any] = {name: value for name, value in _of_targets(adapter.file).items() if name not in given}
    of_run = {name: getattr(adapter.config, name) for name in _OF_RUN if adapter.config and name not in given}
    if "model" not in given:
        model = named_base(adapter, say)
        of_run |= {"model": None if model == MODEL_NAME else model, "revision": adapter.file.base.revision}
    return replace(config, **of_run, **task, **targets, **fixed)


def _of_stack(file: AdapterFile) -> dict[str, Any]:
    """The settings of a file's method stack and its seed."""
    options: dict[str, Any] = {"seed": file.header.seed}
    foreign = []
    for name, value in file.header.method.record().items():
        if name in _FIELDS:
            options[name] = (tuple(value) or None) if isinstance(value, list) else value
        elif name != "version":
            foreign.append(f"{name}={','.join(map(str, value)) if isinstance(value, list) else value}")
    return options | {"method_option": tuple(foreign) or None}


def _check_stack(config: TrainConfig, fixed: dict[str, Any], stack: Stack, given: set[str]) -> None:
    """Refuse a method, an option or a seed of the user's that is not the adapter's.

    Raises:
        UsageError: names it.
    """
    carried = replace(config, **fixed)
    for name in sorted(given & ({"method", "seed", "method_option"} | stack_options(stack.method))):
        wished = getattr(config, name)
        if wished != fixed.get(name) and (name == "seed" or chosen_stack(replace(carried, **{name: wished})) != stack):
            raise _other(config, name, fixed.get(name))


def _head(config: TrainConfig, file: AdapterFile, given: set[str]) -> dict[str, Any]:
    """The settings of a file's head, which is trained as it was there, or as a whole if the user wishes.

    Raises:
        UsageError: the user wants a basis or a frozen head, and it is no such one.
    """
    head = file.header.head
    settings = (
        {"head": "full"} if head is None else {"head": "nola", "head_k": head.k} if head.k else {"head": "frozen"}
    )
    if "head" in given and config.head == "full":
        return {"head": "full"}
    for name, value in settings.items():
        if name in given and getattr(config, name) != value:
            raise _other(config, name, value)
    return settings


def _of_targets(file: AdapterFile) -> dict[str, str | None]:
    """The settings of a file's choice of layers."""
    targets = file.header.targets
    return dict(zip(_TARGETS, (targets.modules or None, targets.exclude or None, targets.layers or None), strict=True))


def _of_task(file: AdapterFile, config: TrainConfig, given: set[str]) -> dict[str, Any]:
    """The settings of a file's task and its options that the user leaves open; none if the user wants another task."""
    task = file.task
    if task is None or task.name not in TASKS:
        return {"task": config.task}
    if "task" in given and config.task != task.name:
        return {}
    kind = task_class(task.name)
    options = {"max_length": task.max_length, "metric": task.metric, **task.options}
    settings = {name: value for name, value in options.items() if name in _FIELDS and name not in given}
    # An empty text stands where the setting has none.
    settings = {
        name: None if value == "" and _FIELDS[name].default is None else value for name, value in settings.items()
    }
    foreign = tuple(f"{name}={task.options[name]}" for name in kind.options_without_flag() if name in task.options)
    if "task_option" not in given:
        settings["task_option"] = foreign or None
    return {"task": task.name, **settings}


def _other(config: TrainConfig, name: str, own: Any) -> UsageError:
    """The error about a setting that is not the adapter's."""
    return UsageError(
        f"--init-from {config.init_from}: it was trained with {flag_of(name)} {_shown(own)}, not "
        f"{_shown(getattr(config, name))}; drop {flag_of(name)}, or train without --init-from"
    )


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
