"""A run that is ready to train, made in stages: tables, task, base model, examples, plan of the adapter, rates.

Each stage is one function and gives one value. What costs little comes first, so that a mistake is reported before
minutes of loading.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from capaft.adapter.budget import count_trainable
from capaft.adapter.dropout import check_dropout
from capaft.adapter.file.header import check_writable
from capaft.adapter.plan import Plan
from capaft.config.restarts import parse_restarts
from capaft.config.train_config import TrainConfig
from capaft.model.load import BaseModel
from capaft.support.errors import UsageError
from capaft.tasks.base.task import Task
from capaft.training.setup.baseline import measures_baseline
from capaft.training.setup.carried import carry_parameters, saved_modules
from capaft.training.setup.examples import make_examples, sample_examples
from capaft.training.setup.job import Job
from capaft.training.setup.method import chosen_stack, plan_adapter
from capaft.training.setup.predecessor import Predecessor
from capaft.training.setup.recipe import choose_rates
from capaft.training.setup.report import describe_job
from capaft.training.setup.selection import DEMO, load_splits
from capaft.training.setup.task_choice import choose_task

if TYPE_CHECKING:
    from datasets import Dataset


def prepare_job(
    config: TrainConfig,
    say: Callable[[str], None],
    labels: Mapping[str, str] | None = None,
    predecessor: Predecessor | None = None,
    rows: Mapping[str, Dataset] | None = None,
) -> Job:
    """Prepare a run. Nothing is written and nothing is trained.

    Args:
        config: the resolved settings.
        say: called with a line for each decision worth reading.
        labels: by name of each setting that the user set, the user's name for it; None counts those
            that are not the default.
        predecessor: the adapter that the run carries on; its settings are among them.
        rows: the data set, by the names of its splits, if a program hands it over.

    Raises:
        UsageError: something cannot be used as given.
    """
    stack = chosen_stack(config)
    check_dropout(stack, config.dropout)
    splits = load_splits(config, lambda line: say(f"data   {line}"), rows)
    choice = sample_examples(choose_task(config, splits, say, predecessor), config, say)
    base = load_base(choice.task, config)
    if stack.method == "head" and not base.head:
        raise UsageError(
            f"--method head has nothing to train: {choice.task.name} makes no new head; choose another method"
        )
    train, validation = make_examples(choice, base, config.data or "the demo", say)
    for index in range(min(config.show, len(train))):
        first, *others = choice.task.show(base, train, index).split("\n")
        say(f"example {index + 1}: {first}")
        for line in others:
            # Indented, so that no line of an example can be taken for one of capaft's own.
            say(f"    {line}")
    if predecessor and config.modules_to_save is None:
        config = replace(config, modules_to_save=saved_modules(predecessor, base))
    plan = plan_adapter(base, stack, config)
    carried = None
    if predecessor:
        mismatch = config.allow_base_mismatch
        carried = carry_parameters(predecessor, base, plan, choice.task, allow_base_mismatch=mismatch)
        # A head that goes on has been trained.
        base = replace(base, new_head=base.new_head and not carried.has_head)
    adapter_parameters = count_trainable(plan)
    rates = choose_rates(plan.stack, adapter_parameters or _trained_directly(base, plan), len(train), config)
    job = Job(
        task=choice.task,
        base=base,
        plan=plan,
        adapter_parameters=adapter_parameters,
        train=train,
        validation=validation,
        data=config.data or DEMO,
        columns=choice.train.columns,
        rates=rates,
        baseline=measures_baseline(choice.task, base, train, config),
        held_out=choice.held_out,
        carried=carried,
    )
    if config.restarts and parse_restarts(config.restarts)[-1].step >= rates.steps:
        raise UsageError(
            f"the run is to end at step {rates.steps}, but its schedule starts anew at step {config.restarts[-1]} "
            "(--restarts, or --resume of a run that was extended there); raise --epochs or --max-steps"
        )
    check_writable(base.base, job.record)
    describe_job(job, config, say, labels)
    return job


def load_base(task: Task, config: TrainConfig) -> BaseModel:
    """Load the base model with the task's head.

    Raises:
        UsageError: the model does not exist, or does not support the task or the options.
    """
    base = task.load_model(config, seed=config.seed)
    if config.gradient_checkpointing:
        _checkpoint_activations(base.model)
    return base


def _checkpoint_activations(model: Any) -> None:
    """Have a model compute activations again in the backward pass.

    Raises:
        UsageError: it cannot.
    """
    try:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    except ValueError:
        raise UsageError(f"--gradient-checkpointing is not supported by {type(model).__name__}; drop it") from None


def _trained_directly(base: BaseModel, plan: Plan) -> int:
    """Number of the model's own parameters that are trained as they are."""
    parameters = base.named_parameters()
    return sum(parameters[name].numel() for name in plan.trained)
