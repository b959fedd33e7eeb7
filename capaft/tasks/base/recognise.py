"""Recognition of the task that a data set and a model are for: each task says whether the rows are its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from capaft.config.choices import TASKS
from capaft.support.errors import UsageError
from capaft.tasks.base.columns import find_column
from capaft.tasks.base.doubts import refuse_other_purposes
from capaft.tasks.base.evidence import Evidence
from capaft.tasks.base.registry import task_class

if TYPE_CHECKING:
    from datasets import Dataset


def recognise_task(rows: Dataset, config: Any, named: Mapping[str, str | None], *, classify: bool = False) -> str:
    """The name of the task that rows and a model are for.

    Args:
        rows: the training split.
        config: the model's configuration, as transformers has it.
        named: the columns that the user named, by role.
        classify: the user set an option that only text classification has.

    Raises:
        UsageError: a named column is missing, no task can read the columns, or they look like something else.
    """
    _check_names(rows, named)
    refuse_other_purposes(rows, named)
    evidence = Evidence(config, named, classify)
    tasks = sorted(map(task_class, TASKS), key=lambda task: task.precedence)
    for task in tasks:
        if task.is_certain(rows, evidence):
            return task.name
    objections = []
    for task in tasks:
        try:
            claimed = task.claims(rows, evidence)
        except UsageError as error:
            objections.append(error)
            continue
        if claimed:
            task.doubt(rows, evidence)
            return task.name
    if objections:
        raise UsageError(f"{objections[0]}; or choose the task with --task")
    # No task wants the columns that the user named; the checks of this one say what is wrong with them.
    return next(task.name for task in tasks if task.is_fallback)


def _check_names(rows: Dataset, named: Mapping[str, str | None]) -> None:
    """Make sure that the named columns exist, if only within another column.

    Raises:
        UsageError: one does not.
    """
    names = {*rows.column_names, *(name.rpartition(".")[2] for name in rows.flatten().column_names)}
    for role, name in named.items():
        if name is not None and not set(name.split(",")) & names:
            find_column(rows, role, name, (), lambda feature: True, "")
