"""Settings that have no effect on a job: one rule for each setting whose effect depends on others.

Nobody should wait for the effect of a setting that the method, the task, the model or another setting leaves out.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path

from capaft.config.settings import flag_of
from capaft.config.train_config import TASK_OPTIONS, TrainConfig
from capaft.methods.stack import known_options, stack_options
from capaft.training.setup.baseline import baseline_head, starts_fitted
from capaft.training.setup.job import Job

Rule = Callable[[Job, TrainConfig], str]
"""The end of the line about a setting without effect: " with lora and is ignored"; empty if it has one."""

# Settings that take part in every run, that permit something, or that are refused where they cannot be had.
ALWAYS = (
    frozenset(["model", "trust_remote_code", "base_dtype", "data", "train_split", "eval_split", "text_column"])
    | frozenset(["resize_embeddings"])
    | frozenset(["max_train_examples", "max_eval_examples", "shots", "show", "task", "metric", "task_option", "strict"])
    | frozenset(["missing_values"])
    | frozenset(["method", "method_option", "dropout", "budget", "seed", "max_steps", "batch_size"])
    | frozenset(["micro_batch_size", "optimizer", "warmup", "schedule", "restarts", "clip", "eval_steps"])
    | frozenset(["eval_batch_size", "precision", "gradient_checkpointing", "output", "checkpoint_seconds", "resume"])
    | frozenset(["tracker", "save_dtype", "overwrite", "init_from"])
)


def idle_settings(job: Job, config: TrainConfig, labels: Mapping[str, str] | None) -> Iterator[str]:
    """A line for each setting that the user set and that has no effect.

    Args:
        job: the job.
        config: the settings that it was made from.
        labels: by name of each setting that the user set, the user's name for it; None counts those that are not the
            default.
    """
    for field in fields(config):
        name, value = field.name, getattr(config, field.name)
        is_chosen = value != field.default if labels is None else name in labels
        if value is None or not is_chosen:
            continue
        label = labels[name] if labels and not labels[name].startswith("--") else flag_of(name)
        if reason := reason_of(name, job, config):
            yield f"{f'{label} {value}' if name == 'head' else label} has no effect{reason}"


def reason_of(name: str, job: Job, config: TrainConfig) -> str:
    """The reason why a setting has no effect on a job; empty if it has one."""
    stack, task = job.plan.stack, job.task
    if name in known_options() and name not in stack_options(stack.method):
        return _with(stack.method)
    if name in TASK_OPTIONS:
        options = {field.name for field in fields(task)}
        idle = task.idle_options(job.base) if name in options else {name: task.name}
        return _with(idle.get(name, ""))
    return _with(rule(job, config)) if (rule := RULES.get(name)) else ""


def _with(cause: str) -> str:
    """The end of a line that names a cause, unless the cause is itself the end of a line, or empty."""
    return cause if cause.startswith((":", " ")) or not cause else f" with {cause} and is ignored"


def _revision(job: Job, config: TrainConfig) -> str:
    is_local = config.model is None or Path(config.model).expanduser().exists()
    return "a base model that is not from the hub" if is_local else ""


def _pair_column(job: Job, config: TrainConfig) -> str:
    return job.task.name if config.pair_column != job.columns.pair else ""


def _label_column(job: Job, config: TrainConfig) -> str:
    return job.task.name if job.columns.label is None and not job.columns.choices else ""


def _validation_split(job: Job, config: TrainConfig) -> str:
    return "" if job.held_out else "data that have a split for validation"


def _max_length(job: Job, config: TrainConfig) -> str:
    return "" if job.task.processor == "AutoTokenizer" else job.task.name


def _head(job: Job, config: TrainConfig) -> str:
    return "" if job.base.head else f": {job.task.name} makes no new head"


def _head_k(job: Job, config: TrainConfig) -> str:
    return _head(job, config) or ("" if config.head == "nola" else f"--head {config.head}")


def _head_lr(job: Job, config: TrainConfig) -> str:
    return _head(job, config) or ("--head frozen" if config.head == "frozen" else "")


def _lr(job: Job, config: TrainConfig) -> str:
    return "--method head and --head-lr" if job.plan.stack.method == "head" and config.head_lr else ""


def _fits(job: Job, config: TrainConfig) -> bool:
    """True if the run's head may start from a fitted one."""
    return starts_fitted(job.task, job.base, job.train, replace(config, head_init="fitted"))


def _head_init(job: Job, config: TrainConfig) -> str:
    if config.head != "full" and job.base.head:
        return f"--head {config.head}"
    return _head(job, config) or ("" if _fits(job, config) else f": no linear head can be fitted for {job.task.name}")


def _head_cache(job: Job, config: TrainConfig) -> str:
    fits = (config.head_init == "fitted" and _fits(job, config)) or (job.baseline and _scored_head(job) == "fitted")
    return "" if fits else ": this run fits no head"


def _scored_head(job: Job) -> str | None:
    return baseline_head(job.task, job.base, job.train)


def _baseline(job: Job, config: TrainConfig) -> str:
    fits = _scored_head(job) or not config.baseline
    return "" if fits else f": no linear head can be fitted for {job.task.name}"


def _density(job: Job, config: TrainConfig) -> str:
    return "--masks partition" if config.masks == "partition" else ""


def _mask_rescale(job: Job, config: TrainConfig) -> str:
    return "masks that keep every entry" if job.plan.stack.copies and job.plan.stack.copies.density == 1 else ""


def _places(job: Job, config: TrainConfig) -> str:
    return "" if job.plan.stack.host else f"--method {job.plan.stack.method}"


def _modules_to_save(job: Job, config: TrainConfig) -> str:
    return "--method full" if job.plan.stack.method == "full" else ""


def _lora_plus_ratio(job: Job, config: TrainConfig) -> str:
    return "" if "up" in job.plan.bounds() else f"{job.plan.stack.method}, which trains no up factors"


def _weight_decay(job: Job, config: TrainConfig) -> str:
    plan, parameters = job.plan, job.base.named_parameters()
    roles = {} if plan.stack.k else plan.groups()
    matrices = any(len(f.shape) > 1 and not f.frozen for groups in roles.values() for f, _ in groups if f.name in roles)
    return "" if matrices or any(parameters[name].ndim > 1 for name in plan.trained) else "a run that trains no matrix"


def _label_smoothing(job: Job, config: TrainConfig) -> str:
    return job.task.idle_options(job.base).get("label_smoothing", "")


def _epochs(job: Job, config: TrainConfig) -> str:
    return "--max-steps" if config.max_steps else ""


def _eval_epochs(job: Job, config: TrainConfig) -> str:
    return "--eval-steps" if config.eval_steps else ""


def _patience(job: Job, config: TrainConfig) -> str:
    per_epoch = math.ceil(len(job.train) / config.batch_size)
    evaluations = math.ceil(job.rates.steps / (config.eval_steps or config.eval_epochs * per_epoch))
    # The first evaluation is the best so far, and after the last the run ends anyway.
    is_idle = config.patience is not None and config.patience + 1 >= evaluations and not config.restarts
    return f"{evaluations} evaluation{'s'[: evaluations > 1]}" if is_idle else ""


def _min_delta(job: Job, config: TrainConfig) -> str:
    return " without --patience and is ignored" if config.patience is None else ""


def _processes(job: Job, config: TrainConfig) -> str:
    started = int(os.environ.get("WORLD_SIZE") or config.processes)
    return "" if started in (1, config.processes) else f"a launcher that has started {started}"


def _timeout(job: Job, config: TrainConfig) -> str:
    return "" if int(os.environ.get("WORLD_SIZE") or config.processes) > 1 else "a single process"


def _allow_base_mismatch(job: Job, config: TrainConfig) -> str:
    return "" if config.init_from else " without --init-from and is ignored"


RULES: dict[str, Rule] = {
    "allow_base_mismatch": _allow_base_mismatch,
    "revision": _revision,
    "pair_column": _pair_column,
    "label_column": _label_column,
    "validation_split": _validation_split,
    "max_length": _max_length,
    "head": _head,
    "head_k": _head_k,
    "density": _density,
    "mask_rescale": _mask_rescale,
    "target_modules": _places,
    "exclude_modules": _places,
    "layers": _places,
    "modules_to_save": _modules_to_save,
    "epochs": _epochs,
    "lr": _lr,
    "head_lr": _head_lr,
    "head_init": _head_init,
    "lora_plus_ratio": _lora_plus_ratio,
    "weight_decay": _weight_decay,
    "label_smoothing": _label_smoothing,
    "eval_epochs": _eval_epochs,
    "patience": _patience,
    "min_delta": _min_delta,
    "baseline": _baseline,
    "head_cache": _head_cache,
    "processes": _processes,
    "timeout": _timeout,
}
"""The rules of settings whose effect depends on others, beside the options of methods and tasks."""
