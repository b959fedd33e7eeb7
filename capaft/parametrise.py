"""Changing what a module's parameter reads as, while the parameter itself stays where it is.

`torch.nn.utils.parametrize` does the same and moves the parameter to another name, so that checkpoints of the base
model no longer fit. Here the module gets a class with a property in the parameter's place; the children that change
it are asked in turn.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor, nn

from capaft.sites import stored


def parametrise(module: nn.Module, parameter: str) -> None:
    """Let a module read one of its parameters as its adapters change it; the parameter itself stays in its place."""
    cls: Any = type(module)
    module.__class__ = _parametrised(cls, parameter)


def restore(module: nn.Module) -> None:
    """Undo :func:`parametrise` for parameters that no adapter changes any more."""
    wanted = {getattr(child, "parametrises", "") for child in module.children()}
    cls: Any = type(module)
    changed = []
    while isinstance(parameter := cls.__dict__.get("capaft_reads"), str):
        changed.append(parameter)
        (cls,) = cls.__bases__
    for parameter in reversed(changed):
        if parameter in wanted:
            cls = _parametrised(cls, parameter)
    module.__class__ = cls


@cache
def _parametrised(cls: Any, parameter: str) -> Any:
    """A class of the same name that reads a parameter through the adapters beside it."""

    def read(module: Any) -> Tensor:
        value = stored(module, parameter)
        for child in module._modules.values():
            if getattr(child, "parametrises", "") == parameter:
                value = child.changed(value)
        return value

    members = {parameter: property(read), "capaft_reads": parameter, "__module__": cls.__module__}
    return type(cls.__name__, (cls,), members)
