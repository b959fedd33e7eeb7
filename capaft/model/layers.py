"""Kind and widths of a layer, and whether the model only ever calls it, all read from the layer itself.

Two things hide a weight from a hook on its module: code that reads `layer.weight` without calling the layer, and
layers whose forward is not a plain product. Both show in the byte code of the model's classes, so no architecture has
to be known by name.
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

from capaft.model.names import base_modules
from capaft.model.quantised import linear_widths, mixes_experts, packed_widths, wrapped_layer
from capaft.model.site import VALUES, SiteKind, is_quantised, stored_parameter

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
# Reading these from a weight is not computing with it.
METADATA = frozenset(["device", "dtype", "shape", "size", "ndim", "is_cuda", "numel", "data_ptr", "requires_grad"])
# Every name that the forward of a plain product may use.
PRODUCT = frozenset(["F", "T", "bias", "dtype", "functional", "linear", "matmul", "nn", "to", "torch", "weight"])
SETUP = ("__init__", "_init", "init_weights", "reset_parameters", "_tie", "tie_", "prune", "_prune")


def layer_kind(module: nn.Module) -> SiteKind | None:
    """Kind of site that a module is, or None if an adapter cannot stand beside it."""
    if isinstance(module, nn.Embedding):
        return "embedding"
    if isinstance(module, CONVOLUTIONS):
        return "conv"
    return "linear" if isinstance(module, (nn.Linear, Conv1D)) or packed_widths(module) else None


def layer_kinds(model: nn.Module) -> dict[str, SiteKind]:
    """The kinds of a model's layers by path, without the parts that a layer is made of, in the model's order."""
    kinds: dict[str, SiteKind] = {}
    parts: set[str] = set()
    for path, module in base_modules(model):
        kind = layer_kind(module)
        if kind and path not in parts:
            kinds[path] = kind
        wrapped = None if kind else wrapped_layer(module)
        if kind == "linear" or wrapped:
            is_packed = kind == "linear" and not isinstance(module, (nn.Linear, Conv1D))
            prefix = path + "." if path else ""
            for inner, part in module.named_modules():
                if inner and inner != wrapped and (is_packed or layer_kind(part) == "linear"):
                    parts.add(prefix + inner)
    return kinds


def is_pointwise(module: nn.Module) -> bool:
    """True if a convolution looks at a single position, and so is a linear layer by another name."""
    return isinstance(module, nn.Conv1d) and module.kernel_size == (1,) and module.stride == (1,)


def packs_experts(module: nn.Module) -> bool:
    """True if a module holds the weights of several experts in one parameter."""
    return mixes_experts(module) and any(parameter.ndim == 3 for parameter in module.parameters(recurse=False))


def is_router(module: nn.Module) -> bool:
    """True if a linear layer returns several values, as the routers of mixtures of experts do."""
    forward = type(module).forward
    steps = [step.opname for step in dis.get_instructions(inspect.unwrap(forward))]
    return any(one == "BUILD_TUPLE" and other == "RETURN_VALUE" for one, other in pairwise(steps))


def layer_widths(module: Any) -> tuple[int, int]:
    """Number of inputs that one output sums over, and of outputs."""
    match module:
        case nn.Embedding():
            return module.num_embeddings, module.embedding_dim
        case Conv1D():
            return module.weight.shape[0], module.weight.shape[1]
        case nn.Conv1d() | nn.Conv2d() | nn.Conv3d():
            return module.weight.shape[1:].numel(), module.weight.shape[0]
        case _:
            return linear_widths(module)


def is_transposed(module: nn.Module) -> bool:
    """True if the weight is stored `(in, out)`."""
    return isinstance(module, (Conv1D, nn.Embedding))


def is_plain(module: Any) -> bool:
    """True if calling the module computes the plain product of its kind, so that a side branch can be added to it."""
    quantised = is_quantised(stored_parameter(module, "weight"))
    if isinstance(module, CONVOLUTIONS):
        is_original = quantised or type(module).forward in {cls.forward for cls in CONVOLUTIONS}
        return is_original and module.groups == 1 and module.padding_mode == "zeros"
    if isinstance(module, nn.Embedding):
        holds_codes = stored_parameter(module, "weight").dtype not in VALUES
        return (holds_codes or type(module).forward is nn.Embedding.forward) and module.max_norm is None
    if not isinstance(module, nn.Linear) or quantised:
        return True
    forward = type(module).forward
    code = inspect.unwrap(forward).__code__
    return forward is nn.Linear.forward or (set(code.co_names) <= PRODUCT and not is_router(module))


def read_without_calling(model: nn.Module, always: bool = False) -> set[str]:
    """Paths of modules whose weight is read by name in a class around them, such as `self.q_proj.weight`.

    Args:
        model: the model.
        always: only those that the class does nothing else with; others it may call under some condition.
    """
    paths: set[str] = set()
    for path, module in base_modules(model):
        cls: Any = type(module)
        names = _weights_read(cls) - (_names_used(cls) if always else frozenset())
        if names:
            prefix = path + "." if path else ""
            paths |= {
                prefix + child for child, _ in module.named_modules() if child and child.rsplit(".", 1)[-1] in names
            }
    return paths


def has_own_backward(model: nn.Module) -> bool:
    """True if some class of a model calls its own autograd function, as reversible layers do.

    Such a function gives gradients to the weights in it only if its input requires one.
    """
    classes: set[Any] = {type(module) for _, module in base_modules(model)}
    return any(_calls_autograd(cls) for cls in classes)


@cache
def _calls_autograd(cls: Any) -> bool:
    values = (
        function.__globals__.get(name) for function in computing_functions(cls) for name in function.__code__.co_names
    )
    classes = (value for value in values if isinstance(value, type) and not value.__module__.startswith("torch."))
    return any(issubclass(kind, torch.autograd.Function) for kind in classes)


@cache
def _weights_read(cls: Any) -> frozenset[str]:
    """Names `n` such that a class's own code computes with `....n.weight`."""
    return frozenset(name for function in computing_functions(cls) for name in _reads(function))


@cache
def _names_used(cls: Any) -> frozenset[str]:
    """Names `n` such that a class's own code uses `....n` itself, and not only an attribute of it."""
    return frozenset(
        step.argval
        for function in computing_functions(cls)
        for step, after in pairwise(_steps(function))
        if step.opname in ("LOAD_ATTR", "LOAD_METHOD") and after.opname not in ("LOAD_ATTR", "LOAD_METHOD")
    )


def computing_functions(cls: type) -> Iterator[FunctionType]:
    """The computing functions of a class and its parents, without those of torch's and transformers' base classes."""
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


def _steps(function: FunctionType) -> list[dis.Instruction]:
    """The instructions of a function, without those that only prepare others."""
    return [
        step for step in dis.get_instructions(function) if step.opname not in ("CACHE", "PUSH_NULL", "EXTENDED_ARG")
    ]


def _reads(function: FunctionType) -> Iterator[str]:
    """Names `n` for which a function computes with `....n.weight`; asking for its type or attributes does not count."""
    steps = _steps(function)
    for i in range(1, len(steps)):
        if steps[i].opname != "LOAD_ATTR" or steps[i].argval != "weight" or steps[i - 1].opname != "LOAD_ATTR":
            continue
        after = steps[i + 1].argval if i + 1 < len(steps) else None
        if after in METADATA:
            continue
        begin = i
        while steps[begin].opname == "LOAD_ATTR":
            begin -= 1
        before = steps[begin - 1] if begin else None
        if before is None or before.argval not in ("isinstance", "hasattr", "type"):
            yield steps[i - 1].argval
