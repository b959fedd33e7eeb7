"""The tasks by name. Each file of `capaft/tasks/` is one, and is imported when it is needed."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from capaft.config.choices import TASKS
from capaft.support.errors import UsageError

if TYPE_CHECKING:
    from capaft.tasks.base.task import Task


def task_class(name: str) -> type[Task]:
    """The class of a task by its name: the class of that name in the file of that name.

    Raises:
        KeyError: no task has that name.
        UsageError: the file of that name defines no class of it.
    """
    if name not in TASKS:
        raise KeyError(name)
    module = import_module(f"capaft.tasks.{name.replace('-', '_')}")
    for value in vars(module).values():
        if isinstance(value, type) and _is_task(value, name, module):
            return value
    raise UsageError(
        f"{module.__file__} defines no task with name = {name!r}; add the class, or move the file elsewhere"
    )


def _is_task(value: type, name: str, module: object) -> bool:
    return getattr(value, "name", None) == name and value.__module__ == getattr(module, "__name__", "")
