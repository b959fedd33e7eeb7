"""The baseline of a run: the score that its adapter has to beat.

A new head knows nothing, so the frozen base is scored under one that is fitted on its features; a checkpoint that
already does the task is scored as it is. A new head that cannot be fitted leaves nothing to compare with.
"""

from __future__ import annotations

from capaft.config.train_config import TrainConfig
from capaft.model.load import BaseModel
from capaft.tasks.base.features import Features
from capaft.tasks.base.task import Task
from capaft.training.record.results import BaselineHead
from capaft.training.setup.fitted_head import can_fit_head, can_install_head


def baseline_head(task: Task, base: BaseModel, train: Features) -> BaselineHead | None:
    """The head under which the frozen base can be scored; None if there is none."""
    if not base.new_head:
        return "own"
    return "fitted" if can_fit_head(task, train) else None


def starts_fitted(task: Task, base: BaseModel, train: Features, config: TrainConfig) -> bool:
    """True if the head of a run starts from one that is fitted on the frozen base's features."""
    may_fit = config.head_init == "fitted" and config.head == "full" and base.new_head
    return may_fit and can_install_head(base) and can_fit_head(task, train)


def measures_baseline(task: Task, base: BaseModel, train: Features, config: TrainConfig) -> bool:
    """True if the frozen base is to be scored: the user's choice, else where it costs a forward of validation at most.

    That is in the demo, where a head is fitted anyway, and where the checkpoint has a head and evaluation has it write
    no texts.
    """
    if config.baseline is not None:
        return config.baseline
    if config.data is None or starts_fitted(task, base, train, config):
        return True
    return baseline_head(task, base, train) == "own" and not task.generates
