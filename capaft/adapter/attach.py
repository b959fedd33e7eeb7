"""Attach an adapter to a model, as people ask for it in Python."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from capaft.adapter.activation import disabled, refuse_distributed
from capaft.adapter.head_of_adapter import new_head, new_labels
from capaft.adapter.install import attach_plan
from capaft.adapter.module import Adapter, carrier
from capaft.adapter.plan import Placement, make_plan
from capaft.config.choices import HEAD_K, Activation, BasisName, HeadMode, MaskRescale, Masks, Scope
from capaft.methods.stack import Stack, parse_stack, stack_options
from capaft.model.names import check_renames
from capaft.model.targets import Targets
from capaft.support.errors import UsageError, check_type


def attach(
    model: nn.Module,
    method: str | Stack,
    *,
    name: str = "default",
    k: int | tuple[int, int] | None = None,
    basis: BasisName | None = None,
    scope: Scope | None = None,
    copies: int | None = None,
    density: float | None = None,
    masks: Masks | None = None,
    mask_rescale: MaskRescale | None = None,
    rank: int | None = None,
    alpha: float | None = None,
    rslora: bool | None = None,
    rank_pattern: Sequence[str] | None = None,
    dropout: float = 0.0,
    bottleneck: int | None = None,
    activation: Activation | None = None,
    bias: bool | None = None,
    scaling: float | None = None,
    prefix_length: int | None = None,
    targets: str | Targets = "",
    exclude: str = "",
    layers: str = "",
    head: Iterable[str] = (),
    head_mode: HeadMode = "full",
    head_k: int = HEAD_K,
    modules_to_save: str = "",
    labels: int | Sequence[str] | None = None,
    seed: int = 0,
    rename: dict[str, str] | None = None,
    method_options: Mapping[str, Any] | None = None,
) -> Adapter:
    """Freeze a model and attach an adapter to it.

    The adapter is active from the start, unless another one is: then `switch` chooses among them. What it trains
    directly is its own copy, and the model's values stay as they are.

    Of the method's options, None stands for the method's own default. Options that another method has and this one does
    not are ignored with a warning.

    Args:
        model: the base model; changed in place.
        method: a method stack such as `"nola"` or `"lora+nola+capaboost"`, or a `Stack`, which has its options already.
        name: the adapter's name on this model.
        k: NOLA's coefficients per factor, or two counts: for down factors and for up factors.
        basis: NOLA's random basis.
        scope: coefficients for each site, or one vector per factor for the whole model.
        copies: CapaBoost's copies d of each factor.
        density: share of a factor that a random mask keeps.
        masks: masks drawn at random, or a partition.
        mask_rescale: `variance` multiplies masked copies by 1 / sqrt(density).
        rank: rank of the update (`lora`, `dora`, `vera`).
        alpha: scale of the update: it is multiplied by alpha / rank (`lora`, `dora`).
        rslora: divide alpha by sqrt(rank) instead (`lora`).
        rank_pattern: ranks of some sites, each `"name=rank"` or `"re:pattern=rank"` (`lora`).
        dropout: share of the adapter's input that is zeroed while the model trains.
        bottleneck: hidden width of adapter layers (`houlsby`, `pfeiffer`, `parallel`).
        activation: activation of adapter layers.
        bias: give the projections of adapter layers biases.
        scaling: factor on the output of adapter layers.
        prefix_length: virtual tokens (`prefix`).
        targets: the layers to adapt: a preset such as `"all-linear"`, names separated by commas, or `"re:pattern"`;
            empty for the method's own choice.
        exclude: layers to leave out, in the same language.
        layers: numbers of the blocks to adapt, such as `"0-5,11"`; empty for all.
        head: names of the parameters of a new head, such as `["classifier.weight", "classifier.bias"]`. Without them a
            head that the checkpoint lacks stays random and frozen.
        head_mode: `full` trains the head directly, `nola` moves its large parameters along a seeded basis, `frozen`
            leaves it alone.
        head_k: coefficients of each large parameter of the head under `nola`.
        modules_to_save: modules to train directly, in the language of `targets`.
        labels: names or number of the labels of this adapter, if they are not the model's: then `head` is a new one of
            that many outputs, drawn from the seed, and the model's configuration has these labels while the adapter is
            active.
        seed: seed of every random number of the adapter, `0 <= seed < 2**64`.
        rename: `{old: new}` pieces of module paths; sites are named by the old ones.
        method_options: options of a method from another package that have no keyword here.

    Returns:
        The adapter, also reachable as a child module of the model.

    Raises:
        UsageError: the stack, an option, the targets or the name cannot be used.

    Example:
        >>> adapter = capaft.attach(model, "nola", k=16, rank=2, seed=7)
        >>> sum(p.numel() for p in model.parameters() if p.requires_grad)
        128
    """
    check_type("model", model, nn.Module, "a torch module")
    check_type("method", method, str | Stack, "a method stack such as 'nola'")
    check_type("name", name, str, "a text")
    check_type("dropout", dropout, int | float, "a number")
    check_type("modules_to_save", modules_to_save, str, "one text, with commas between its parts")
    check_type("rename", rename, dict | None, "a dictionary")
    check_type("method_options", method_options, Mapping | None, "a dictionary")
    keywords = {
        "k": k,
        "basis": basis,
        "scope": scope,
        "copies": copies,
        "density": density,
        "masks": masks,
        "mask_rescale": mask_rescale,
        "rank": rank,
        "alpha": alpha,
        "rslora": rslora,
        "rank_pattern": rank_pattern,
        "bottleneck": bottleneck,
        "activation": activation,
        "bias": bias,
        "scaling": scaling,
        "prefix_length": prefix_length,
    }
    stack = _stack(method, {key: value for key, value in keywords.items() if value is not None}, method_options or {})
    placement = Placement(
        targets=_targets(targets, exclude, layers),
        seed=seed,
        head=_names("head", head),
        head_mode=head_mode,
        head_k=head_k,
        modules_to_save=modules_to_save,
        rename=rename,
    )
    refuse_distributed(model, "attach to")
    with disabled(model):
        model = carrier(model)
        check_renames(model, rename)
        plan = make_plan(model, stack, placement)
        head_labels = None if labels is None else new_labels(labels)
        start = new_head(model, placement, len(head_labels.names)) if head_labels else {}
        if start:
            shapes = {name: values.shape for name, values in start.items()}
            plan = make_plan(model, stack, replace(placement, shapes=shapes))
    return attach_plan(model, plan, name=name, dropout=dropout, start=start, labels=head_labels)


def _stack(method: str | Stack, keywords: Mapping[str, Any], method_options: Mapping[str, Any]) -> Stack:
    """Parse a method and its options, or return a `Stack` as it is.

    Raises:
        UsageError: an option is set twice, is set beside a `Stack`, or is invalid.
    """
    if isinstance(method, str):
        if twice := sorted(keywords.keys() & method_options.keys()):
            raise UsageError(f"{twice[0]} is set twice, by its keyword and in method_options; drop one of them")
        stack = parse_stack(method, **keywords, **method_options)
        for option in sorted({*keywords, *method_options} - stack_options(method)):
            warnings.warn(f"{option} has no effect with {stack.method} and is ignored", stacklevel=4)
        return stack
    if options := sorted({*keywords, *method_options}):
        raise UsageError(
            f"the method is a Stack, which has its options already; give {', '.join(options)} to capaft.Stack.parse"
        )
    return method


def _names(option: str, names: Iterable[str]) -> tuple[str, ...]:
    """Names of parameters or modules.

    Raises:
        UsageError: they are one text, whose letters would be taken for names.
    """
    if isinstance(names, Iterable) and not isinstance(names, str):
        names = tuple(names)
        if all(isinstance(name, str) for name in names):
            return names
    raise UsageError(f"{option} must be a list of names, got {names!r:.200}")


def _targets(targets: str | Targets, exclude: str, layers: str) -> Targets:
    if not isinstance(targets, Targets):
        return Targets(targets, exclude, layers)
    if exclude or layers:
        raise UsageError("targets is a Targets, which has exclude and layers of its own; set them there")
    return targets
