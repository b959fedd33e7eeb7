"""Modules that change buffers of their own while a model trains: running averages, ranges, codebooks.

In evaluation mode they use those buffers and leave them alone. What changes them shows in the byte code of their
class, so that none but two kinds of torch's has to be known by name.
"""

from __future__ import annotations

import dis
from collections.abc import Iterator
from functools import cache
from types import FunctionType
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.spectral_norm import SpectralNorm

from capaft.model.layers import computing_functions
from capaft.model.names import CHILD_PREFIX, base_modules

# Larger buffers of whole numbers are codes of quantised weights.
MOST_COUNTS = 2**16


def runs_statistics(module: nn.Module) -> bool:
    """True if evaluation mode is all that it takes to keep a module from changing its buffers.

    Modules with children, or with dropout in their own code, have more to do in training mode and do not count.
    """
    buffers = frozenset(name for name, buffer in module._buffers.items() if buffer is not None)
    if not buffers:
        return False
    if isinstance(module, nn.modules.batchnorm._NormBase):
        return "running_mean" in buffers
    if any(isinstance(hook, SpectralNorm) for hook in module._forward_pre_hooks.values()):
        return True
    kind: Any = type(module)
    return all(name.startswith(CHILD_PREFIX) for name in module._modules) and _updates(kind, buffers)


def possible_statistics(model: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """The buffers that a forward may change for good: each with its module and its name there.

    A buffer that checkpoints leave out is a cache, unless its class knows of training mode.
    """
    for _, module in base_modules(model):
        kind: Any = type(module)
        for name, buffer in module._buffers.items():
            if buffer is None or buffer.is_meta:
                continue
            is_kept = name not in module._non_persistent_buffers_set or _knows_training(kind)
            if is_kept and (buffer.is_floating_point() or buffer.numel() <= MOST_COUNTS):
                yield module, name, buffer


@cache
def _knows_training(cls: Any) -> bool:
    return any("training" in function.__code__.co_names for function in computing_functions(cls))


@cache
def _updates(cls: Any, buffers: frozenset[str]) -> bool:
    """True if a class's own code changes one of these buffers, and knows training mode, but no dropout."""
    functions = list(computing_functions(cls))
    drops = any("drop" in name.lower() for function in functions for name in function.__code__.co_names)
    return not drops and _knows_training(cls) and any(_changes(function, buffers) for function in functions)


def _changes(function: FunctionType, buffers: frozenset[str]) -> bool:
    """True if a function assigns to one of these attributes, or calls a method on it that works in place."""
    steps = [step for step in dis.get_instructions(function) if step.opname not in ("CACHE", "EXTENDED_ARG")]
    for index, step in enumerate(steps):
        if step.opname == "STORE_ATTR" and step.argval in buffers:
            return True
        method = step.argval if step.opname in ("LOAD_ATTR", "LOAD_METHOD") else None
        if not isinstance(method, str) or not method.endswith("_") or method.endswith("__"):
            continue
        owner = steps[index - 2] if steps[index - 1].argval == "data" else steps[index - 1]
        if owner.opname == "LOAD_ATTR" and owner.argval in buffers:
            return True
    return False
