"""Every file of `capaft/tasks/` is a task of its name."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from capaft.config.choices import TASKS
from capaft.support.errors import UsageError
from capaft.tasks.base import registry
from capaft.tasks.base.registry import task_class
from capaft.tasks.base.task import Task
from capaft.tasks.text_classification import TextClassification


@pytest.mark.parametrize("name", TASKS)
def test_every_file_is_a_task_of_its_name(name: str) -> None:
    kind = task_class(name)
    assert issubclass(kind, Task)
    assert kind.name == name
    assert kind.__module__ == f"capaft.tasks.{name.replace('-', '_')}"


def test_an_unknown_name_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        task_class("star-rating")


def test_a_file_without_its_task_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("capaft.tasks.star_rating")
    module.__file__ = "capaft/tasks/star_rating.py"
    # A class that the file only imports does not count.
    module.TextClassification = TextClassification  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(registry, "TASKS", ("star-rating",))
    with pytest.raises(UsageError, match=r"^capaft/tasks/star_rating.py defines no task with name = 'star-rating'; "):
        task_class("star-rating")
