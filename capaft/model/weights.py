"""Owners of a model's weights, and the device that they are on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator

import torch
from torch import nn

from capaft.model.names import base_modules
from capaft.model.quantised import is_quantised_layer
from capaft.model.site import is_quantised


def weight_owners(model: nn.Module, key: Callable[[nn.Parameter], int] = id) -> defaultdict[int, list[tuple[str, str]]]:
    """Owners of every weight of a model itself, each a module's path and a parameter's name; a tied weight has several.

    Args:
        model: the model.
        key: what tells one weight from another. The default sees the same object. `data_ptr` also sees two objects
            that share memory, but a weight on `meta` has no memory, and all of them would be one.

    Returns:
        The owners by key, in the model's order; none for a key that no parameter has.
    """
    owners: defaultdict[int, list[tuple[str, str]]] = defaultdict(list)
    for path, module in base_modules(model):
        for name, parameter in module._parameters.items():
            if parameter is not None:
                owners[key(parameter)].append((path, name))
    return owners


def held_tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    """The parameters and buffers of a module; replicas of `nn.DataParallel` keep their parameters elsewhere."""
    yield from module.parameters()
    for inner in module.modules():
        yield from getattr(inner, "_former_parameters", {}).values()
    yield from module.buffers()


def device_of(model: nn.Module) -> torch.device:
    """Device of the first weight that is not on `meta`, which is where accelerate leaves what it has offloaded.

    If all are, it is the device on which accelerate runs the model, or `meta`. Buffers count where there are no
    parameters, and a model that holds no tensors, which extensions keep elsewhere, is on the CPU.
    """
    devices = [tensor.device for tensor in model.parameters()] or [tensor.device for tensor in model.buffers()]
    for device in devices:
        if device.type != "meta":
            return device
    execution_device = getattr(getattr(model, "_hf_hook", None), "execution_device", None)
    if execution_device is not None:
        return torch.device(execution_device)
    return devices[0] if devices else torch.device("cpu")


def dtype_of(model: nn.Module) -> torch.dtype:
    """Dtype of most of a model's values, codes and what stands beside them aside; float32 if it has none."""
    counts: defaultdict[torch.dtype, int] = defaultdict(int)
    for module in model.modules():
        if not is_quantised_layer(module):
            for parameter in module.parameters(recurse=False):
                if not is_quantised(parameter):
                    counts[parameter.dtype] += parameter.numel()
    return max(counts, key=lambda dtype: counts[dtype], default=torch.float32)
