"""Owners of a model's weights, and the device that they are on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import torch
from torch import nn


def weight_owners(model: nn.Module, key: Callable[[nn.Parameter], int] = id) -> defaultdict[int, list[tuple[str, str]]]:
    """Owners of every weight, each the path of a module and the name of its parameter; a tied weight has several.

    Args:
        model: the model.
        key: what tells one weight from another. The default sees the same object. `data_ptr` also sees two objects
            that share memory, but a weight on `meta` has no memory, and all of them would be one.

    Returns:
        The owners by key, in the model's order; none for a key that no parameter has.
    """
    owners: defaultdict[int, list[tuple[str, str]]] = defaultdict(list)
    for path, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                owners[key(parameter)].append((path, name))
    return owners


def first_weight(module: nn.Module) -> torch.Tensor:
    """The first weight of a module that has any; replicas of `nn.DataParallel` keep theirs elsewhere."""
    inner = module.modules()
    sources = ({**part._parameters, **getattr(part, "_former_parameters", {})} for part in inner)
    return next(weight for source in sources for weight in source.values() if weight is not None)


def device_of(model: nn.Module) -> torch.device:
    """Device of the first weight that is not on `meta`, which is where accelerate leaves what it has offloaded.

    If all are, it is the device on which accelerate runs the model, or `meta` for a model without weights.
    """
    devices = [parameter.device for parameter in model.parameters()]
    for device in devices:
        if device.type != "meta":
            return device
    execution_device = getattr(getattr(model, "_hf_hook", None), "execution_device", None)
    return devices[0] if execution_device is None else torch.device(execution_device)
