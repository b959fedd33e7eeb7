"""What a layer is, told from the layer itself: its kind, its widths, and whether calling it is all that the model does.

Two things hide a weight from a hook on its module: code that reads `layer.weight` without calling the layer, and
layers whose forward is not a plain product. Both are told from the byte code of the model's classes, so no
architecture has to be known by name.
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from types import FunctionType
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from capaft.model.site import SiteKind, is_quantised, stored_parameter

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
# Reading these of a weight tells what it is; it is not a product.
ASKS = frozenset(["device", "dtype", "shape", "size", "ndim", "is_cuda", "numel", "data_ptr", "requires_grad"])
# All that the forward of a plain product can name.
PRODUCT = frozenset(["F", "T", "bias", "dtype", "functional", "linear", "matmul", "nn", "to", "torch", "weight"])
SETUP = ("__init__", "_init", "init_weights", "reset_parameters", "_tie", "tie_", "prune", "_prune")


def layer_kind(module: nn.Module) -> SiteKind | None:
    """What kind of weight a module is, or None where it is none that an adapter can stand beside."""
    if isinstance(module, nn.Embedding):
        return "embedding"
    if isinstance(module, CONVOLUTIONS):
        return "conv"
    if isinstance(module, (nn.Linear, Conv1D)):
        return "linear"
    quantised = all(hasattr(module, name) for name in ("in_features", "out_features", "weight"))
    return "linear" if quantised and not isinstance(module, nn.Bilinear) else None


def is_pointwise(module: nn.Module) -> bool:
    """Whether a convolution is a linear layer by another name: one that looks at a single position."""
    return isinstance(module, nn.Conv1d) and module.kernel_size == (1,) and module.stride == (1,)


def packs_experts(module: nn.Module) -> bool:
    """Whether a module holds the weights of several experts in one parameter."""
    packed = hasattr(module, "num_experts") or "expert" in type(module).__name__.lower()
    return packed and any(parameter.ndim == 3 for parameter in module.parameters(recurse=False))


def is_router(module: nn.Module) -> bool:
    """Whether a linear layer returns several things, as the routers of mixtures of experts do."""
    forward = type(module).forward
    steps = [step.opname for step in dis.get_instructions(inspect.unwrap(forward))]
    return any(one == "BUILD_TUPLE" and other == "RETURN_VALUE" for one, other in pairwise(steps))


def layer_widths(module: Any) -> tuple[int, int]:
    """Width of what one output sums over, and of the output."""
    match module:
        case nn.Embedding():
            return module.num_embeddings, module.embedding_dim
        case Conv1D():
            return module.weight.shape[0], module.weight.shape[1]
        case nn.Conv1d() | nn.Conv2d() | nn.Conv3d():
            return module.weight[0].numel(), module.weight.shape[0]
        case _:
            return module.in_features, module.out_features


def is_transposed(module: nn.Module) -> bool:
    """Whether the weight is stored `(in, out)`."""
    return isinstance(module, (Conv1D, nn.Embedding))


def is_plain(module: Any) -> bool:
    """Whether calling the module is the plain product of its kind, so that a side branch can be added to it."""
    if isinstance(module, CONVOLUTIONS):
        own = type(module).forward in {each.forward for each in CONVOLUTIONS}
        return own and module.groups == 1 and module.padding_mode == "zeros"
    if isinstance(module, nn.Embedding):
        return type(module).forward is nn.Embedding.forward and module.max_norm is None
    if not isinstance(module, nn.Linear) or is_quantised(stored_parameter(module, "weight")):
        return True
    forward = type(module).forward
    code = inspect.unwrap(forward).__code__
    return forward is nn.Linear.forward or (set(code.co_names) <= PRODUCT and not is_router(module))


def read_without_calling(model: nn.Module) -> set[str]:
    """Paths of modules whose weight some class around them reads by name: `self.q_proj.weight`, say."""
    found: set[str] = set()
    for path, module in model.named_modules():
        cls: Any = type(module)
        names = _weights_read(cls)
        if names:
            prefix = path + "." if path else ""
            found |= {
                prefix + below for below, _ in module.named_modules() if below and below.rsplit(".", 1)[-1] in names
            }
    return found


def has_own_backward(model: nn.Module) -> bool:
    """Whether some class of a model calls an autograd function of its own, as reversible layers do.

    Such a function gives gradients to what it reaches only if its input asks for one.
    """
    classes: set[Any] = {type(m) for m in model.modules() if not type(m).__module__.startswith("capaft.")}
    return any(_calls_autograd(cls) for cls in classes)


@cache
def _calls_autograd(cls: Any) -> bool:
    named = (function.__globals__.get(name) for function in _functions(cls) for name in function.__code__.co_names)
    own = (each for each in named if isinstance(each, type) and not each.__module__.startswith("torch."))
    return any(issubclass(each, torch.autograd.Function) for each in own)


@cache
def _weights_read(cls: Any) -> frozenset[str]:
    """Names `n` for which a class's own code says `....n.weight` to compute with it."""
    return frozenset(name for function in _functions(cls) for name in _reads(function))


def _functions(cls: type) -> Iterator[FunctionType]:
    """The functions of a class and its parents that compute, without those of torch's and transformers' own bases."""
    for parent in cls.__mro__:
        if parent in (nn.Module, object) or parent.__module__ in (
            "transformers.modeling_utils",
            "torch.nn.modules.module",
        ):
            continue
        for name, value in vars(parent).items():
            function = inspect.unwrap(value) if callable(value) and hasattr(value, "__wrapped__") else value
            if isinstance(function, FunctionType) and not name.startswith(SETUP):
                yield function


def _reads(function: FunctionType) -> Iterator[str]:
    steps = [
        step for step in dis.get_instructions(function) if step.opname not in ("CACHE", "PUSH_NULL", "EXTENDED_ARG")
    ]
    for at in range(1, len(steps)):
        if steps[at].opname != "LOAD_ATTR" or steps[at].argval != "weight" or steps[at - 1].opname != "LOAD_ATTR":
            continue
        after = steps[at + 1].argval if at + 1 < len(steps) else None
        if after in ASKS:
            continue
        begin = at
        while steps[begin].opname == "LOAD_ATTR":
            begin -= 1
        asked = steps[begin - 1] if begin else None
        if asked is None or asked.argval not in ("isinstance", "hasattr", "type"):
            yield steps[at - 1].argval
