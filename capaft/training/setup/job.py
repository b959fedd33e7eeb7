"""A run that is ready to train, as a value; `prepare.py` makes it."""

from __future__ import annotations

from dataclasses import dataclass

from capaft.adapter.file.header import TaskRecord
from capaft.adapter.plan import Plan
from capaft.model.load import BaseModel
from capaft.tasks.base.columns import Columns
from capaft.tasks.base.features import Features
from capaft.tasks.base.task import Task
from capaft.training.setup.carried import Carried
from capaft.training.setup.recipe import Rates


@dataclass(frozen=True)
class Job:
    """A run that is ready to train.

    Attributes:
        task: the task, with its labels.
        base: the loaded base model.
        plan: the adapter, planned but not drawn.
        adapter_parameters: number of trainable parameters of the adapter, without those of the head.
        train: training examples as the model takes them.
        validation: validation examples.
        data: what the user called the data set.
        columns: those of the training rows.
        rates: length and learning rates of the run.
        baseline: True if the frozen base is to be scored first.
        held_out: True if the validation rows were set aside from the training rows.
        carried: the start that it takes over from another adapter; None without one.
    """

    task: Task
    base: BaseModel
    plan: Plan
    adapter_parameters: int
    train: Features
    validation: Features
    data: str
    columns: Columns
    rates: Rates
    baseline: bool
    held_out: bool
    carried: Carried | None = None

    @property
    def head_parameters(self) -> int:
        """Number of trainable parameters that are the model's own: the head's, or all for `full`."""
        sizes = {name: p.numel() for name, p in self.base.named_parameters().items()}
        return sum(sizes[name] for name in self.plan.trained) + self.plan.head.count

    @property
    def origin(self) -> str:
        """The model that the run starts from, for people."""
        return self.carried.predecessor.name if self.carried else "the frozen base"

    @property
    def head_names(self) -> set[str]:
        """Names of the trainable parameters, as in the adapter file, that belong to the head."""
        return {"head"} | {f"head:{name}" for name in self.base.head}

    @property
    def record(self) -> TaskRecord:
        """The task as an adapter file has it."""
        task = self.task
        return TaskRecord(task.name, task.labels, task.max_length, task.metric, task.options())
