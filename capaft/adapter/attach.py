"""Attach an adapter to a model, and detach it again."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from capaft.adapter.activation import activate, active_names, disabled, get_adapter, refuse_distributed
from capaft.adapter.head_of_adapter import new_head, new_labels, own_labels, own_tensors
from capaft.adapter.hooks import AttentionAdapter, SiteAdapter, parametrised
from capaft.adapter.module import Adapter, adapters, carrier
from capaft.adapter.plan import Placement, Plan, make_plan
from capaft.adapter.replacing import watch_registrations
from capaft.adapter.statistics import hold_statistics, release_statistics
from capaft.adapter.substitutes import Substitutes
from capaft.config.choices import HEAD_K, Activation, BasisName, HeadMode, MaskRescale, Masks, Scope
from capaft.methods.stack import Stack, parse_stack, stack_options
from capaft.model.labels import Labels
from capaft.model.layers import has_own_backward
from capaft.model.names import CHILD_PREFIX, base_parameters, canonical_name, input_embeddings
from capaft.model.other_adapters import refuse_other_adapters
from capaft.model.quantised import check_gradients
from capaft.model.site import Site, is_quantised
from capaft.model.targets import Targets
from capaft.model.weights import device_of
from capaft.support.errors import UsageError


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
    _check_type("model", model, nn.Module, "a torch module")
    _check_type("method", method, str | Stack, "a method stack such as 'nola'")
    _check_type("name", name, str, "a text")
    _check_type("dropout", dropout, int | float, "a number")
    _check_type("modules_to_save", modules_to_save, str, "one text, with commas between its parts")
    _check_type("rename", rename, dict | None, "a dictionary")
    _check_type("method_options", method_options, Mapping | None, "a dictionary")
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
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise UsageError(f"{option} must be a list of names, got {names!r}")
    return tuple(names)


def _check_type(option: str, value: object, kind: Any, words: str) -> None:
    """Check the type of a value from Python, where nothing has parsed it.

    Raises:
        UsageError: it is another.
    """
    if not isinstance(value, kind):
        raise UsageError(f"{option} must be {words}, got {value!r:.200}")


def _targets(targets: str | Targets, exclude: str, layers: str) -> Targets:
    if not isinstance(targets, Targets):
        return Targets(targets, exclude, layers)
    if exclude or layers:
        raise UsageError("targets is a Targets, which has exclude and layers of its own; set them there")
    return targets


# Parameters made in inference mode could never be trained.
@torch.inference_mode(False)
def attach_plan(
    model: nn.Module,
    plan: Plan,
    *,
    name: str = "default",
    dropout: float = 0.0,
    start: Mapping[str, torch.Tensor] | None = None,
    labels: Labels | None = None,
    in_place: bool = False,
    trains: bool = True,
) -> Adapter:
    """Freeze a model and attach the adapter of a plan; see `attach`.

    Args:
        model: the base model.
        plan: every decision about the adapter.
        name: the adapter's name on the model.
        dropout: share of the adapter's input that is zeroed while the model trains.
        start: values of the head's parameters that are not the model's, by canonical name.
        labels: the labels of the adapter's head; None for the model's.
        in_place: train the model's own tensors, without a copy of what they were: for a run that owns the model.
        trains: False if the adapter is attached to be used only, so that no gradient has to pass through the model.

    Raises:
        UsageError: the name or the dropout cannot be used, a parameter to train is offloaded or quantised, a weight to
            change is computed from others, no gradient passes through a layer, or the model has another library's
            adapter.
    """
    refuse_other_adapters(model)
    if name in adapters(model):
        raise UsageError(f"the model already has an adapter named {name}; detach it or choose another name")
    if not name.isidentifier():
        raise UsageError(f"an adapter's name must be an identifier, got {name!r}")
    check_dropout(plan.stack, dropout)
    if any(not set(adapter.plan.trained) <= set(adapter.substitutes.names) for adapter in adapters(model).values()):
        raise UsageError("the model itself is being trained, and has no room for a second adapter")
    is_first = not active_names(model)
    with disabled(model):
        model = carrier(model)
        adapter = _install(model, plan, name, dropout, trains)
        if not in_place:
            adapter.substitutes = Substitutes(own_tensors(model, plan, start or {}), plan.rename)
            adapter.labels = own_labels(model, plan, labels)
            _register_state(model, adapter)
    if is_first:
        activate(model, [name])
    return adapter


def _register_state(model: nn.Module, adapter: Adapter) -> None:
    """Have the model write and read its state with the adapter's tensors apart from its own."""
    from capaft.adapter.file.pretrained import save_pretrained

    substitutes = adapter.substitutes
    adapter.handles.append(model.register_load_state_dict_pre_hook(adapter.warn_of_missing))
    if substitutes.names:
        adapter.handles.append(model._register_state_dict_hook(substitutes.write_state))
        adapter.handles.append(model.register_load_state_dict_pre_hook(substitutes.read_state))
    if hasattr(model, "save_pretrained"):
        # A partial, since a closure could be neither copied nor pickled with the model.
        model.save_pretrained = partial(save_pretrained, model)  # type: ignore[assignment]


def _install(model: nn.Module, plan: Plan, name: str, dropout: float, trains: bool) -> Adapter:
    """Make the adapter, inactive, and put it and its hooks into the model."""
    for path, parameter in base_parameters(model).items():
        if canonical_name(model, path, plan.rename) in plan.trained:
            if parameter.is_meta:
                raise UsageError(f"{path} is offloaded and cannot be trained; keep it on a device with device_map")
            if is_quantised(parameter):
                raise UsageError(f"{path} is quantised and cannot be trained directly; leave it out")
    for host, site in plan.placed:
        if parametrised(host, site) and site.is_computed(model):
            raise UsageError(f"{site.module} computes its {site.parameter} from other parameters; leave it out")
    if trains and plan.sites:
        check_gradients(model)
    watch_registrations()
    adapter = Adapter(plan, dropout)
    adapter.to(device_of(model))
    adapter.enabled = False
    adapter.freeze(model)
    hold_statistics(model)
    if plan.stack.host:
        adapter.handles += plan.stack.host.prepare(model)
    for index, (_, site) in enumerate(plan.placed):
        for path in site.modules:
            module = model.get_submodule(path)
            child = (AttentionAdapter if site.kind == "attention" else SiteAdapter)(adapter, index)
            module.add_module(_child_name(name, site), child)
            adapter.places.append((*filter(None, path.split(".")), _child_name(name, site)))
            child.install(module, model.get_submodule(site.source) if site.source else None)
    if dropout and (silent := [site.path for site in plan.sites if not takes_dropout(plan, site)]):
        warnings.warn(f"no dropout at {', '.join(silent[:3])}{' and others' if silent[3:] else ''}", stacklevel=6)
    model.add_module(CHILD_PREFIX + name, adapter)
    if plan.placed:
        before = model.register_forward_pre_hook(adapter.before_forward)
        after = model.register_forward_hook(adapter.after_forward, always_call=True)
        adapter.handles += [before, after]
        if has_own_backward(model) and (embeddings := input_embeddings(model)) is not None:
            adapter.handles.append(embeddings.register_forward_hook(_require_gradient))
    return adapter


def takes_dropout(plan: Plan, site: Site) -> bool:
    """True if a site has an input that dropout can zero in part: not if its weight is changed, or if it looks up."""
    host = plan.stack.host
    return host is not None and not site.parametrised and site.kind in host.kinds - {"embedding"}


def check_dropout(stack: Stack, dropout: float) -> None:
    """Check that a method can use a dropout.

    Raises:
        UsageError: it is out of range, or the method has no place for it.
    """
    if not 0 <= dropout < 1:
        raise UsageError(f"--dropout must be in [0, 1), got {dropout}")
    if dropout and not (stack.host and stack.host.drops):
        raise UsageError(f"--dropout cannot be used with {stack.method}, which has no input of its own; drop it")


def detach(model: nn.Module, name: str = "default") -> Adapter:
    """Take an adapter off: hooks, modules and frozen flags are as they were before `attach`.

    So is every tensor, bit for bit, and the model's own head and labels are back in their places; `merge` keeps what
    was trained. If the adapter was active, no adapter takes its place until `switch`.

    Returns:
        The adapter, which keeps its parameters and its head.

    Raises:
        UsageError: the model has no adapter of this name, or one of its layers has been replaced.

    Example:
        >>> adapter = capaft.attach(model, "nola", k=16, rank=2, seed=7)
        >>> capaft.detach(model) is adapter
        True
        >>> all(p.requires_grad for p in model.parameters())
        True
    """
    adapter, model = get_adapter(model, name), carrier(model)
    adapter.check_places(model)
    if adapter.enabled:
        adapter.leave(model)
    for _, site in adapter.plan.placed:
        for path in site.modules:
            module = model.get_submodule(path)
            key = _child_name(name, site)
            child: Any = getattr(module, key)
            delattr(module, key)
            child.remove(module)
    for handle in adapter.handles:
        handle.remove()
    adapter.handles, adapter.places = [], []
    delattr(model, CHILD_PREFIX + name)
    adapter.release(model)
    with disabled(model):
        adapter.thaw(model)
    if not adapters(model):
        release_statistics(model)
        vars(model).pop("save_pretrained", None)
    return adapter


def _require_gradient(module: nn.Module, args: Any, output: Any) -> None:
    """Hook of the input embeddings, for a model whose autograd function needs an input that requires a gradient."""
    first = output if isinstance(output, torch.Tensor) else output[0]
    if torch.is_grad_enabled() and first.is_floating_point() and not first.requires_grad:
        first.requires_grad_(True)


def _child_name(name: str, site: Site) -> str:
    """Name of a site's child module; a fused projection has one for each part, packed experts one for each matrix.

    A module of the head has one per parameter, beside any other child.

    No adapter's name has a `#`, so these names clash neither with each other nor with the adapter's own.
    """
    part = f"head:{site.parameter}" if site.kind == "head" else site.part
    return f"{CHILD_PREFIX}{name}#" + part.replace(".", ":")
