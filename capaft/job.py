"""Everything a run decides before it trains: the data, the task, the base model, the adapter's plan, the rates."""

from __future__ import annotations

import typing
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capaft import budget, columns, data, demo
from capaft.attach import check_dropout
from capaft.base_model import BaseModel
from capaft.config import TrainConfig
from capaft.errors import UsageError
from capaft.methods import HOSTS
from capaft.methods.stack import CAPABOOST_OPTIONS, NOLA_OPTIONS, Stack, canonical, parse
from capaft.plan import Plan, plan
from capaft.recipe import recipe
from capaft.settings import did_you_mean
from capaft.settings import parse as parse_setting
from capaft.targets import Targets
from capaft.tasks.text_classification import Features, TextClassification

if TYPE_CHECKING:
    from datasets import DatasetDict

DEMO_DATA = "demo"


@dataclass(frozen=True)
class Job:
    """A run that is ready to train.

    Attributes:
        task: the task, with its labels.
        base: the loaded base model.
        plan: the adapter, decided but not drawn.
        train: tokenised training examples.
        validation: tokenised validation examples.
        data: what the user called the data set.
        epochs: passes over the training examples.
        lr: peak learning rate of the adapter's numbers.
        head_lr: peak learning rate of the head.
        baseline: score the frozen base first.
    """

    task: TextClassification
    base: BaseModel
    plan: Plan
    train: Features
    validation: Features
    data: str
    epochs: int
    lr: float
    head_lr: float
    baseline: bool

    @cached_property
    def adapter_numbers(self) -> int:
        """Trained numbers of the adapter, without those of the head."""
        return budget.trained_numbers(self.plan)

    @property
    def own_numbers(self) -> int:
        """Trained numbers that are the model's own: the head's, or all for `full`."""
        sizes = {name: p.numel() for name, p in self.base.named_parameters().items()}
        return sum(sizes[name] for name in self.plan.trained)


def prepare(config: TrainConfig, say: Callable[[str], None]) -> Job:
    """Decide a run. Nothing is written and nothing is trained.

    Args:
        config: the resolved configuration.
        say: told one line for each decision worth reading.

    Raises:
        UsageError: something cannot be used as given.
    """
    is_demo = config.model is None and config.data is None
    stack = parse(config.method, **_numbers(config, demo.K if is_demo else None))
    check_dropout(stack, config.dropout)
    adapts_weights = stack.host is not None and bool(stack.host.default_targets)
    targets = Targets(
        config.target_modules or (demo.TARGET_MODULES if is_demo and adapts_weights else ""),
        config.exclude_modules or "",
        config.layers or "",
    )
    rows = load_data(config)
    found = columns.recognise(
        rows["train"], text=config.text_column, pair=config.pair_column, label=config.label_column
    )
    labels = tuple(columns.labels(rows["train"], found))
    if config.max_train_examples and config.max_train_examples < len(rows["train"]):
        rows["train"] = data.sample(rows["train"], config.max_train_examples, config.seed)
    task = TextClassification(labels, config.max_length, config.metric or "accuracy")
    # A wrong label should be told before minutes of loading.
    columns.encode_labels(rows["validation"], found, list(labels))
    base = task.load_model(
        config.model,
        seed=config.seed,
        revision=config.revision,
        trust_remote_code=config.trust_remote_code,
    )
    train = task.features(base.tokenizer, rows["train"], found)
    validation = task.features(base.tokenizer, rows["validation"], found)
    say(f"data   {config.data or 'the demo'}: {len(train)} training and {len(validation)} validation examples")
    say(f"       {found.describe()}; {len(labels)} classes")
    if cut := train.truncated + validation.truncated:
        say(f"       {cut} examples are longer than {config.max_length} tokens and are cut (--max-length)")
    placing: dict[str, Any] = {"targets": targets, "seed": config.seed, "head": base.head}
    placing["modules_to_save"] = config.modules_to_save or ""
    if config.budget is not None:
        stack = budget.fit(base.model, stack, config.budget, **placing)
    decided = plan(base.model, stack, **placing)
    rates = recipe(stack)
    job = Job(
        task=task,
        base=base,
        plan=decided,
        train=train,
        validation=validation,
        data=config.data or DEMO_DATA,
        epochs=config.epochs or rates.epochs,
        lr=config.lr or rates.lr,
        head_lr=config.head_lr or rates.head_lr,
        baseline=config.baseline if config.baseline is not None else config.data is None,
    )
    _describe(job, stack, say)
    return job


def _numbers(config: TrainConfig, k: tuple[int, ...] | None) -> dict[str, Any]:
    """The options of the configured method; those of another package's method by their types."""
    hosts = HOSTS.values()
    known = {option.name for host in hosts for option in host.options()} | NOLA_OPTIONS | CAPABOOST_OPTIONS
    numbers = {name: getattr(config, name) for name in known if hasattr(config, name)} | {"k": config.k or k}
    host = HOSTS.get(canonical(config.method).partition("+")[0])
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


def load_data(config: TrainConfig) -> DatasetDict:
    """The configured data set, or the embedded one.

    Raises:
        UsageError: it cannot be read.
    """
    if config.data is None or (config.data == DEMO_DATA and not Path(DEMO_DATA).exists()):
        return demo.examples()
    return data.load(config.data, validation_split=config.validation_split, seed=config.seed)


def _describe(job: Job, stack: Stack, say: Callable[[str], None]) -> None:
    total = sum(p.numel() for p in job.base.named_parameters().values())
    say(
        f"model  {job.base.base.name}: {total:,} weights, frozen"
        if stack.method != "full"
        else f"model  {job.base.base.name}: {total:,} weights, all trained"
    )
    if stack.host:
        numbers = ", ".join(f"{key} {value}" for key, value in stack.record().items() if key != "method")
        say(
            f"method {stack.method} ({numbers}) on {len(job.plan.sites)} sites: {job.adapter_numbers:,} trained numbers"
        )
    else:
        say(f"method {stack.method}")
    if stack.method != "full":
        say(f"       and {job.own_numbers:,} of the head")
    if stack.k:
        factors = [f for groups in job.plan.groups().values() for f, _ in groups if stack.coefficients(f)]
        smallest = min((f.size for f in factors), default=max(stack.k))
        if max(stack.k) > smallest and stack.scope == "site":
            dense = stack.method.replace("+nola", "")
            say(f"       warning: k {max(stack.k)} is more than the {smallest} entries of a factor; {dense} is smaller")


def settled(config: TrainConfig, job: Job) -> TrainConfig:
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
    return replace(
        config,
        method=job.plan.stack.method,
        epochs=job.epochs,
        lr=job.lr,
        head_lr=job.head_lr,
        metric=job.task.metric,
        baseline=job.baseline,
        budget=None,
        method_option=tuple(others) or None,
        target_modules=job.plan.targets.modules or None,
        **numbers,
    )
