"""The method stack of a run, and the plan of its adapter on the base model."""

from __future__ import annotations

import typing
from typing import Any

from capaft.adapter.budget import fit_to_budget
from capaft.adapter.plan import Placement, Plan, make_plan
from capaft.config.choices import DEMO_K, DEMO_TARGET_MODULES
from capaft.config.pairs import parse_pairs
from capaft.config.parts.method import MethodSettings
from capaft.config.train_config import TrainConfig
from capaft.config.values import parse_value
from capaft.methods.registry import HOSTS
from capaft.methods.stack import Stack, canonical_method, known_options, parse_stack
from capaft.model.load import BaseModel
from capaft.model.targets import Targets
from capaft.support.errors import UsageError, did_you_mean


def chosen_stack(config: TrainConfig) -> Stack:
    """The method stack that the settings describe; the demo has a k of its own.

    Raises:
        UsageError: there is no such method, or an option does not fit it.
    """
    options = {name: getattr(config, name) for name in known_options() if hasattr(config, name)}
    options["k"] = config.k or ((DEMO_K,) if _is_demo(config) else None)
    return parse_stack(config.method, **options | _foreign_options(config))


def _is_demo(config: TrainConfig) -> bool:
    return config.model is None and config.data is None


def _foreign_options(settings: MethodSettings) -> dict[str, Any]:
    """The options of another package's method, parsed by their types.

    Raises:
        UsageError: an entry is not NAME=VALUE, the method has no such option, or its value is not of the option's type.
    """
    host = HOSTS.get(canonical_method(settings.method).partition("+")[0])
    names = {option.name for option in host.options()} if host else set()
    options = {}
    entries = parse_pairs(settings.method_option or (), "--method-option NAME=VALUE", may_be_empty=True)
    for name, text in entries.items():
        if host is None or name not in names:
            hint = did_you_mean(name, names)
            raise UsageError(f"--method-option {name}: {settings.method} has no option {name}{hint}")
        try:
            options[name] = parse_value(typing.get_type_hints(host)[name], text)
        except ValueError as error:
            raise UsageError(f"--method-option {name} {error}") from None
    return options


def plan_adapter(base: BaseModel, stack: Stack, config: TrainConfig) -> Plan:
    """Plan the adapter on a base model; parameters that are trained directly become float32 here.

    Args:
        base: the base model.
        stack: the method stack; its size is chosen here if there is a budget.
        config: the resolved settings; the demo adapts more layers.

    Raises:
        UsageError: nothing can be adapted as asked, or the budget is too small.
    """
    adapts_weights = stack.host is not None and bool(stack.host.default_targets)
    targets = Targets(
        config.target_modules or (DEMO_TARGET_MODULES if _is_demo(config) and adapts_weights else ""),
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
    plan = make_plan(base.model, stack, placement)
    parameters = base.named_parameters()
    for name in plan.trained:
        # A step is often smaller than what bfloat16 or float16 can tell apart.
        parameters[name].data = parameters[name].data.float()
    return plan
