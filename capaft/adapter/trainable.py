"""The parameters that need gradients: none of the model's own, and those of the adapters that are active."""

from __future__ import annotations

from torch import nn

from capaft.adapter.module import Adapter, adapters
from capaft.model.names import base_parameters

# Flags of the model's own parameters, by name, from before its first adapter.
_FLAGS = "capaft_flags"


def freeze(model: nn.Module, adapter: Adapter) -> None:
    """Freeze the model's own parameters but those that an adapter trains in place; remember their flags."""
    base = base_parameters(model)
    vars(model).setdefault(_FLAGS, {name: parameter.requires_grad for name, parameter in base.items()})
    for name, parameter in base.items():
        parameter.requires_grad_(adapter.trains_in_place(model, name))


def thaw(model: nn.Module) -> None:
    """Undo `freeze`, unless adapters remain."""
    flags = None if adapters(model) else vars(model).pop(_FLAGS, {})
    for name, parameter in base_parameters(model).items():
        parameter.requires_grad_(flags is not None and flags.get(name, parameter.requires_grad))


def hold(model: nn.Module, adapter: Adapter) -> None:
    """Have nobody train an adapter while it is inactive."""
    if adapter.held is None:
        trained = adapter.trained(model)
        adapter.held = {name: parameter.requires_grad for name, parameter in trained.items()}
        for parameter in trained.values():
            parameter.requires_grad_(False)


def release(model: nn.Module, adapter: Adapter) -> None:
    """Undo `hold`."""
    if adapter.held is not None:
        for name, parameter in adapter.trained(model).items():
            parameter.requires_grad_(adapter.held[name])
        adapter.held = None
