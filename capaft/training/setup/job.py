"""Everything a run decides before it trains: the data, the task, the base model, the adapter's plan, the rates."""

from __future__ import annotations

import math
import typing
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from capaft.adapter.attach import check_dropout
from capaft.adapter.budget import count_trainable, fit_to_budget
from capaft.adapter.file.header import TaskRecord
from capaft.adapter.plan import Placement, Plan, make_plan
from capaft.config.choices import DEMO_K, DEMO_TARGET_MODULES
from capaft.config.settings import parse_value as parse_setting
from capaft.config.train_config import TASK_OPTIONS, TrainConfig
from capaft.data.sampling import sample_rows, sample_shots
from capaft.methods.registry import HOSTS
from capaft.methods.stack import canonical_method, known_options, parse_stack, stack_options
from capaft.model.load import BaseModel, load_configuration
from capaft.model.targets import Targets
from capaft.support.errors import UsageError, did_you_mean
from capaft.tasks.base.columns import Columns
from capaft.tasks.base.features import Features
from capaft.tasks.base.recognise import check_model, recognise_task
from capaft.tasks.base.registry import task_class
from capaft.tasks.base.task import Task
from capaft.training.setup import fitted_head
from capaft.training.setup.recipe import choose_recipe
from capaft.training.setup.selection import (
    DEMO,
    column_settings,
    given_columns,
    load_splits,
    select_for_training,
    with_task_options,
)

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Job:
    """A run that is ready to train.

    Attributes:
        task: the task, with its labels.
        base: the loaded base model.
        plan: the adapter, decided but not drawn.
        adapter_numbers: trained numbers of the adapter, without those of the head.
        train: training examples as the model takes them.
        validation: validation examples.
        data: what the user called the data set.
        columns: those of the training rows.
        steps: optimiser steps of the whole run.
        epochs: passes over the training examples; None where steps were asked for.
        lr: peak learning rate of the adapter's numbers.
        head_lr: peak learning rate of the head.
        baseline: score the frozen base first.
    """

    task: Task
    base: BaseModel
    plan: Plan
    adapter_numbers: int
    train: Features
    validation: Features
    data: str
    columns: Columns
    steps: int
    epochs: int | None
    lr: float
    head_lr: float
    baseline: bool

    @property
    def own_numbers(self) -> int:
        """Trained numbers that are the model's own: the head's, or all for `full`."""
        sizes = {name: p.numel() for name, p in self.base.named_parameters().items()}
        return sum(sizes[name] for name in self.plan.trained) + self.plan.head.numbers

    @property
    def head_names(self) -> set[str]:
        """Names of the trained parameters, as in the adapter file, that belong to the head."""
        return {"head"} | {f"head:{name}" for name in self.base.head}

    @property
    def record(self) -> TaskRecord:
        """The task as an adapter file has it."""
        task = self.task
        return TaskRecord(task.name, task.labels, task.max_length, task.metric, task.options())


def prepare_job(config: TrainConfig, say: Callable[[str], None]) -> Job:
    """Decide a run. Nothing is written and nothing is trained.

    Args:
        config: the resolved configuration.
        say: told one line for each decision worth reading.

    Raises:
        UsageError: something cannot be used as given.
    """
    is_demo = config.model is None and config.data is None
    stack = parse_stack(config.method, **_numbers(config, (DEMO_K,) if is_demo else None))
    check_dropout(stack, config.dropout)

    def say_data(line: str) -> None:
        say(f"data   {line}")

    source = load_splits(config, say_data)
    assert source.train is not None
    sketch = load_configuration(config.model, revision=config.revision, trust_remote_code=config.trust_remote_code)
    classify = config.problem != "auto" or bool(config.label_separator)
    name: str = config.task
    if name == "auto":
        name = recognise_task(source.train, sketch, given_columns(config), classify=classify)
    say(f"task   {name}{'' if config.task == name else ', told by the data and the model (--task chooses)'}")
    check_model(name, sketch)
    kind = task_class(name)
    train_part, validation_part, known = select_for_training(kind, source, config, say_data)
    task = kind.decide(known.rows, known.columns, config)
    # A wrong label should be told before minutes of loading.
    task.check_labels(validation_part.rows, validation_part.columns)
    train_rows = _chosen(config, task, train_part.rows, train_part.columns, say_data)
    validation_rows = validation_part.rows
    if config.max_eval_examples and config.max_eval_examples < len(validation_rows):
        validation_rows = sample_rows(validation_rows, config.max_eval_examples, config.seed)
    base = task.load_model(
        config.model,
        seed=config.seed,
        base_dtype=config.base_dtype,
        revision=config.revision,
        trust_remote_code=config.trust_remote_code,
    )
    if config.gradient_checkpointing:
        _compute_activations_again(base.model)
    train = task.features(base, train_rows, train_part.columns, training=True)
    validation = task.features(base, validation_rows, validation_part.columns, training=False)
    _describe_data(config, task, train, validation, train_part.columns, say)
    for index in range(min(config.show, len(train))):
        say(f"example {index + 1}: {task.show(base, train, index)}")
    if stack.method == "head" and not base.head:
        raise UsageError(f"--method head has nothing to train: {task.name} makes no new head; choose another method")
    adapts_weights = stack.host is not None and bool(stack.host.default_targets)
    targets = Targets(
        config.target_modules or (DEMO_TARGET_MODULES if is_demo and adapts_weights else ""),
        config.exclude_modules or "",
        config.layers or "",
    )
    placement = Placement(
        targets=targets,
        seed=config.seed,
        head=base.head,
        head_mode=config.head,
        head_k=config.head_k,
        modules_to_save=config.modules_to_save or "",
    )
    if config.budget is not None:
        stack = fit_to_budget(base.model, stack, config.budget, placement)
    decided = make_plan(base.model, stack, placement)
    own = base.named_parameters()
    for name in decided.trained:
        # A step is often smaller than what bfloat16 or float16 can tell apart.
        own[name].data = own[name].data.float()
    adapter_numbers = count_trainable(decided)
    rates = choose_recipe(stack, adapter_numbers or sum(own[name].numel() for name in decided.trained))
    per_epoch = math.ceil(len(train) / config.batch_size)
    epochs = None if config.max_steps else config.epochs or rates.epochs
    job = Job(
        task=task,
        base=base,
        plan=decided,
        adapter_numbers=adapter_numbers,
        train=train,
        validation=validation,
        data=config.data or DEMO,
        columns=train_part.columns,
        steps=config.max_steps or (epochs or 1) * per_epoch,
        epochs=epochs,
        lr=config.lr or rates.lr,
        # Of the method that trains nothing but the head, the one rate is the head's.
        head_lr=config.head_lr or (config.lr if stack.method == "head" else None) or rates.head_lr,
        baseline=config.baseline if config.baseline is not None else config.data is None,
    )
    _describe(job, config, say)
    return job


def _compute_activations_again(model: Any) -> None:
    """Have a model compute activations again in the backward.

    Raises:
        UsageError: it cannot.
    """
    try:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    except ValueError:
        raise UsageError(f"--gradient-checkpointing is not supported by {type(model).__name__}; drop it") from None


def _chosen(config: TrainConfig, task: Task, rows: Dataset, found: Columns, say: Callable[[str], None]) -> Dataset:
    """The training rows that are wanted: so many of each class, so many in all."""
    if config.shots:
        classes = task.classes_of(rows, found)
        if classes is None:
            raise UsageError(f"--shots has no meaning for this {task.name}: no class a row; use --max-train-examples")
        rows = sample_shots(rows, classes, config.shots, config.seed)
        counts = Counter(classes)
        scarce = [f"{label} ({counts[at]})" for at, label in enumerate(task.labels) if counts[at] < config.shots]
        if scarce:
            more = f" and {len(scarce) - 10} more" if len(scarce) > 10 else ""
            say(f"some classes have fewer than {config.shots} training rows: {', '.join(scarce[:10])}{more}")
    if config.max_train_examples and config.max_train_examples < len(rows):
        rows = sample_rows(rows, config.max_train_examples, config.seed)
    return rows


def _describe_data(
    config: TrainConfig,
    task: Task,
    train: Features,
    validation: Features,
    found: Columns,
    say: Callable[[str], None],
) -> None:
    classes = f"; {len(task.labels)} classes" if task.labels else ""
    pieces = ""
    if (train.examples, validation.examples) != (len(train), len(validation)):
        pieces = f", in {len(train)} and {len(validation)} pieces"
    counts = f"{train.examples} training and {validation.examples} validation examples{pieces}"
    say(f"data   {config.data or 'the demo'}: {counts}")
    say(f"       {found.describe()}{classes}")
    if train.left_out:
        say(f"       {train.left_out}")
    if cut := train.truncated + validation.truncated:
        say(f"       {cut} examples are too long and are cut ({task.cut_by})")


def _numbers(config: TrainConfig, k: tuple[int, ...] | None) -> dict[str, Any]:
    """The options of the configured method; those of another package's method by their types."""
    numbers = {name: getattr(config, name) for name in known_options() if hasattr(config, name)}
    numbers["k"] = config.k or k
    host = HOSTS.get(canonical_method(config.method).partition("+")[0])
    own = {option.name for option in host.options()} if host else set()
    for entry in config.method_option or ():
        name, _, text = entry.partition("=")
        if host is None or name not in own:
            raise UsageError(f"--method-option {entry}: {config.method} has no option {name}{did_you_mean(name, own)}")
        try:
            numbers[name] = parse_setting(typing.get_type_hints(host)[name], text)
        except ValueError as error:
            raise UsageError(f"--method-option {name} {error}") from None
    return numbers


def _describe(job: Job, config: TrainConfig, say: Callable[[str], None]) -> None:
    stack = job.plan.stack
    total = sum(p.numel() for p in job.base.named_parameters().values())
    say(
        f"model  {job.base.base.name}: {total:,} weights, frozen"
        if stack.method != "full"
        else f"model  {job.base.base.name}: {total:,} weights, all trained"
    )
    if stack.host:
        numbers = ", ".join(
            f"{name} {','.join(map(str, value)) if isinstance(value, list) else value}"
            for name, value in stack.record().items()
            if name != "method" and value not in (False, None, [], "site", "none")
        )
        say(
            f"method {stack.method} ({numbers}) on {len(job.plan.sites)} sites: {job.adapter_numbers:,} trained numbers"
        )
    else:
        say(f"method {stack.method}")
    if stack.method != "full" and job.own_numbers:
        say(f"       and {job.own_numbers:,} of the head")
    of_head = f", {job.head_lr:g} for the head" if job.base.head and job.head_lr != job.lr else ""
    say(f"rate   {job.lr:g} at its peak{of_head}; {job.steps} steps of {config.batch_size} examples")
    if stack.k:
        factors = [f for groups in job.plan.groups().values() for f, _ in groups if stack.coefficients(f)]
        smallest = min((f.size for f in factors), default=max(stack.k))
        if max(stack.k) > smallest and stack.scope == "site":
            dense = stack.method.replace("+nola", "")
            say(f"       warning: k {max(stack.k)} is more than the {smallest} entries of a factor; {dense} is smaller")
    changed = [each.name for each in fields(config) if getattr(config, each.name) != each.default]
    void = known_options() - stack_options(stack.method)
    of_others = TASK_OPTIONS - {each.name for each in fields(job.task)}
    for name in changed:
        if name in void or name in of_others:
            whom = stack.method if name in void else job.task.name
            say(f"       warning: --{name.replace('_', '-')} means nothing to {whom} and is left aside")
    if not job.base.head and config.head != "full":
        say(f"       warning: --head {config.head} means nothing here: {job.task.name} makes no new head")
    if config.baseline and not fitted_head.can_fit_head(job.task, job.train):
        say(f"       warning: --baseline means nothing to {job.task.name}, for which no linear head can be fitted")


def settled_config(config: TrainConfig, job: Job) -> TrainConfig:
    """The configuration with every choice filled in that was left to capaft, so that a saved run repeats exactly."""
    stack = job.plan.stack
    numbers: dict[str, Any] = {"k": stack.k} if stack.k else {}
    others: list[str] = []
    for option in stack.host.options() if stack.host else ():
        value = getattr(stack.host, option.name)
        if hasattr(config, option.name):
            numbers[option.name] = None if value == () else value
        else:
            shown = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            others.append(f"{option.name}={shown}")
    found = column_settings(type(job.task), job.columns)
    return replace(
        with_task_options(config, job.task),
        method=job.plan.stack.method,
        task=job.task.name,
        epochs=job.epochs,
        lr=job.lr,
        head_lr=job.head_lr,
        baseline=job.baseline,
        budget=None,
        method_option=tuple(others) or None,
        text_column=found.get("text", config.text_column),
        pair_column=found.get("pair", config.pair_column),
        label_column=found.get("label", config.label_column),
        target_modules=job.plan.targets.modules or None,
        **numbers,
    )
