"""What an adapter trains beside its method, as PEFT keeps it: whole modules, such as a head."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from capaft.adapter.module import Adapter
from capaft.exchange.peft_layers import PeftLayers
from capaft.exchange.peft_lora import PREFIX
from capaft.exchange.peft_names import excludes, saved_by, saved_names
from capaft.model.names import CHILD_PREFIX, canonical_name, without_wrappers
from capaft.model.weights import weight_owners
from capaft.support.errors import UsageError

# Modules that PEFT keeps a copy of for a task, whatever the configuration says.
KEPT_FOR_TASK = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}

# What PEFT does not keep, since nobody calls it.
_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


@dataclass(frozen=True, eq=False)
class SavedModules:
    """Modules that an adapter brings as a whole.

    Attributes:
        names: their names in the configuration.
        tensors: the tensors of all modules that these names mean, by key.
        task_type: PEFT's name for the task; None where the modules that PEFT would keep for it are in the way.
    """

    names: tuple[str, ...]
    tensors: dict[str, Tensor]
    task_type: str | None


def saved_modules(
    layers: PeftLayers, adapter: Adapter, targets: Collection[str], task_type: str | None
) -> SavedModules:
    """The modules that hold what an adapter trains as it is, with their values while it is active.

    All of a head is among them, also what the adapter leaves frozen, since a checkpoint need not have it.

    Args:
        layers: the layers of the model, in which the adapter is the only active one.
        adapter: the adapter.
        targets: paths of the modules that its method changes.
        task_type: PEFT's name for the task.

    Raises:
        UsageError: PEFT cannot keep one of them.
    """
    modules = _holders(layers, adapter)
    for path in modules:
        if not path:
            raise UsageError("PEFT keeps whole modules, and the adapter trains a parameter of the model itself")
        inside = sorted(target for target in targets if f"{target}.".startswith(f"{path}."))
        if inside:
            raise UsageError(
                f"PEFT keeps whole modules, and {path} holds both something trained as it is and {inside[0]}, which is "
                "adapted; merge the run"
            )
    names = saved_names(modules, layers.places, targets)
    forced = KEPT_FOR_TASK.get(task_type or "", ())
    kept = saved_by({*names, *forced}, layers.places)
    if any(excludes(name, targets) for name in forced) or _are_nested(kept):
        task_type, kept = None, saved_by(names, layers.places)
    if lost := [path for name in names for path in excludes(name, targets)]:
        raise UsageError(f"PEFT would not adapt {lost[0]}, since {name_of(names, lost[0])} is also a module to save")
    tensors: dict[str, Tensor] = {}
    for path in sorted(kept):
        for leaf, value in _state(layers.places[path]):
            if value.is_meta:
                raise UsageError(f"{path} is offloaded; load the base model without offloading to export it")
            # Each a copy: a file of tensors does not take one twice.
            tensors[f"{PREFIX}{path}.{leaf}"] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
    return SavedModules(names, tensors, task_type)


def name_of(names: Collection[str], target: str) -> str:
    """The name because of which PEFT would leave out a target."""
    return next(name for name in names if excludes(name, [target]))


def _holders(layers: PeftLayers, adapter: Adapter) -> set[str]:
    """Paths of the modules that hold the parameters, or of one around them if it holds nothing else."""
    plan = adapter.plan
    model, owners = layers.model, weight_owners(layers.model)
    moved = {(without_wrappers(site.module), site.parameter) for site in plan.head.parameters}

    def is_wanted(path: str, leaf: str) -> bool:
        name = canonical_name(model, f"{path}.{leaf}".removeprefix("."), plan.rename)
        return name in plan.trained or (without_wrappers(path), leaf) in moved

    wanted = {key for key, places in owners.items() if any(is_wanted(*place) for place in places)}
    holders = {without_wrappers(path) for key in wanted for path, _ in owners[key]}
    held = {key: {without_wrappers(path) for path, _ in places} for key, places in owners.items()}
    widened = set()
    for path in holders:
        while parent := path.rpartition(".")[0]:
            inside = {key for key, paths in held.items() if any(f"{p}.".startswith(f"{parent}.") for p in paths)}
            if not inside <= wanted or isinstance(layers.places[parent], _CONTAINERS):
                break
            path = parent
        widened.add(path)
    return {path for path in widened if not _is_inside(path, widened)}


def _is_inside(path: str, others: Collection[str]) -> bool:
    return any(path.startswith(f"{other}.") for other in others)


def _are_nested(paths: Collection[str]) -> bool:
    """True if one of some modules is inside another, of which PEFT would make copies of copies."""
    return any(_is_inside(path, paths) for path in paths)


def _state(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """The entries of a module's `state_dict`, with the values that the model computes with."""
    for leaf, parameter in module._parameters.items():
        if parameter is not None:
            yield prefix + leaf, getattr(module, leaf)
    for leaf, buffer in module._buffers.items():
        if buffer is not None and leaf not in module._non_persistent_buffers_set:
            yield prefix + leaf, buffer
    for name, child in module._modules.items():
        if child is not None and not name.startswith(CHILD_PREFIX):
            yield from _state(child, f"{prefix}{name}.")
