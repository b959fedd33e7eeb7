"""Change the value that a module's parameter or mode reads as, while it itself stays in place.

`torch.nn.utils.parametrize` does the same but moves the parameter to another name, so that checkpoints of the base
model no longer fit. Here the module gets a class with a property in the parameter's place, which calls the children
that change it in turn.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from capaft.model.site import stored_parameter

# The attribute of every module that `train` and `eval` set.
MODE = "training"


def add_parametrisation(module: nn.Module, parameter: str) -> None:
    """Have a module read one of its parameters as its adapters change it; the parameter itself stays in place."""
    cls: Any = type(module)
    module.__class__ = _parametrised(cls, parameter)


def remove_parametrisation(module: nn.Module) -> None:
    """Undo `add_parametrisation` for parameters that no adapter changes any more."""
    still_changed = {getattr(child, "parametrises", "") for child in module.children()}
    cls, changed = _unparametrised(type(module))
    for parameter in changed:
        if parameter in still_changed or parameter == MODE:
            cls = _changed_class(cls, parameter)
    module.__class__ = cls


def evaluate_only(module: nn.Module) -> None:
    """Have a module read as being in evaluation mode, whatever mode it is put in."""
    cls: Any = type(module)
    module.__class__ = _evaluated(cls)


def is_evaluated_only(module: nn.Module) -> bool:
    """True between `evaluate_only` and `release_training`."""
    return MODE in _unparametrised(type(module))[1]


def release_training(module: nn.Module) -> None:
    """Undo `evaluate_only`: the module is in the mode that it was last put in."""
    cls, changed = _unparametrised(type(module))
    for parameter in changed:
        if parameter != MODE:
            cls = _parametrised(cls, parameter)
    module.__class__ = cls


def _changed_class(cls: Any, name: str) -> Any:
    return _evaluated(cls) if name == MODE else _parametrised(cls, name)


@cache
def _evaluated(cls: Any) -> Any:
    """A subclass of the same name whose modules are never in training mode."""
    mode = property(lambda module: False, lambda module, value: vars(module).__setitem__(MODE, value))
    return _subclass(cls, MODE, mode)


@cache
def _parametrised(cls: Any, parameter: str) -> Any:
    """A subclass of the same name that reads a parameter through its adapters."""

    def read(module: Any) -> Tensor:
        value = stored_parameter(module, parameter)
        if value.is_meta:
            return value  # Offloaded: accelerate looks at the parameter before it fetches the values.
        layers: dict[int, list[Any]] = {}
        for child in module._modules.values():
            if getattr(child, "parametrises", "") != parameter:
                continue
            if child.layer is None:
                value = child.changed(value)
            else:
                layers.setdefault(child.layer, []).append(child)
        if not layers:
            return value
        # Packed matrices are changed one by one and packed once: writing each into the whole would copy it each time.
        matrices = list(value.unbind(0))
        for layer, children in layers.items():
            for child in children:
                matrices[layer] = child.changed(matrices[layer])
        return torch.stack(matrices)

    return _subclass(cls, parameter, property(read))


def _subclass(cls: Any, name: str, value: property) -> Any:
    """A subclass of the same name with a property."""

    def reduce(module: Any, protocol: Any) -> tuple[Any, ...]:
        # Pickle cannot find a class that was made here.
        return _rebuild, _unparametrised(type(module)), module.__getstate__()

    return type(
        cls.__name__,
        (cls,),
        {name: value, "capaft_reads": name, "__module__": cls.__module__, "__reduce_ex__": reduce},
    )


def _unparametrised(cls: Any) -> tuple[Any, tuple[str, ...]]:
    """The module's original class, and the changed parameters, innermost first."""
    changed: list[str] = []
    while isinstance(parameter := cls.__dict__.get("capaft_reads"), str):
        changed.append(parameter)
        (cls,) = cls.__bases__
    return cls, tuple(reversed(changed))


def _rebuild(cls: Any, parameters: tuple[str, ...]) -> Any:
    """An empty module of a class, parametrised again."""
    for parameter in parameters:
        cls = _changed_class(cls, parameter)
    return cls.__new__(cls)
