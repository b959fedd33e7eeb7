"""Layers whose weights are codes: recognised by what they hold, read by what they compute.

Every library packs codes in its own way: a tensor of integers, several tensors and a table, a tensor subclass, an
object of a compiled extension. What these layers have in common is a forward from one width to another. So nothing here
knows a library by name, and a layer's weight is its answer to the unit vectors.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from capaft.model.names import base_modules
from capaft.model.site import is_quantised
from capaft.support.errors import UsageError, one_line
from capaft.support.out_of_memory import pass_on_exhaustion

# Attributes that state a layer's widths; other modules have those of `OTHER_NAMES` too, which count beside codes only.
NAMES = ("in_features", "out_features")
OTHER_NAMES = (
    ("infeatures", "outfeatures"),
    ("input_size", "output_size"),
    ("input_dims", "output_dims"),
    ("input_dim", "output_dim"),
    ("in_dim", "out_dim"),
)
# Integers that hold codes; those of positions and masks are int64 and bool.
CODES = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.uint16, torch.uint32)
# Unit vectors in one forward, so that the answers take little memory beside the weight.
UNITS = 1024
# Relative error that rounding the inputs to 4 bits stays under, and another weight does not.
TOLERANCE = 0.2
# The same for unit vectors of half the length, if the inputs are not rounded to a fixed grid.
GRID_TOLERANCE = 0.02


def packed_widths(module: nn.Module) -> tuple[int, int] | None:
    """Numbers of inputs and outputs of a linear layer that is not one of torch's; None for any other module.

    A module that only wraps a linear layer is none itself.
    """
    if widths := _stated(module, NAMES):
        is_layer = _has_forward(module) or any(True for _ in own_tensors(module))
        return widths if is_layer and not wrapped_layer(module) else None
    codes = _codes(module)
    if not codes or mixes_experts(module):
        return None
    return next((widths for names in OTHER_NAMES if (widths := _stated(module, names))), None) or _shape(module, codes)


def wrapped_layer(module: nn.Module) -> str | None:
    """Path, inside a module without a matrix of its own, of the linear layer that has its widths; None without one."""
    widths = _stated(module, NAMES)
    if widths is None or any(tensor.ndim > 1 or _is_code(tensor) for tensor in own_tensors(module)):
        return None
    for path, inner in module.named_modules():
        if path and widths == (_stated(inner, NAMES) if isinstance(inner, nn.Linear) else packed_widths(inner)):
            return path
    return None


def is_unreadable(module: nn.Module) -> bool:
    """True if a module computes with a matrix of codes, and nothing tells how wide its inputs and outputs are.

    To be asked of modules that are not layers.
    """
    tensors = list(own_tensors(module))
    is_scaled = any(tensor.is_floating_point() and not _is_code(tensor) for tensor in tensors)
    return is_scaled and any(code.ndim > 1 for code in _codes(module)) and _has_forward(module)


def mixes_experts(module: nn.Module) -> bool:
    """True if a module holds several experts, as its attribute or the name of its class says."""
    return hasattr(module, "num_experts") or "expert" in type(module).__name__.lower()


def own_tensors(module: nn.Module) -> Iterator[Tensor]:
    """The tensors that a module holds itself, as parameters, buffers or attributes."""
    for held in (module._parameters, module._buffers, vars(module)):
        yield from (value for value in held.values() if isinstance(value, Tensor))


def is_quantised_layer(module: nn.Module) -> bool:
    """True if a layer computes with codes, or with a weight that cannot be seen."""
    if isinstance(module, (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return is_quantised(getattr(module, "weight", None), _linear_size(module))
    widths = packed_widths(module)
    return widths is not None and is_quantised(getattr(module, "weight", None), widths[0] * widths[1])


def quantised_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The quantised layers of a model, by path."""
    return {path: module for path, module in base_modules(model) if is_quantised_layer(module)}


def linear_widths(module: Any) -> tuple[int, int]:
    """Numbers of inputs and outputs of a linear layer, whether or not it is one of torch's."""
    widths = _stated(module, NAMES) or packed_widths(module)
    assert widths is not None, "not a linear layer"
    return widths


def dense_weight(module: nn.Module) -> tuple[Tensor, Tensor | None] | None:
    """The weight `(out, in)` and the bias `(out,)` that a linear layer computes with.

    Returns:
        None if the layer is no product with a weight, or cannot be called here.
    """
    for dtype in _dtypes(module):
        # Kernels raise anything for a dtype that they do not take.
        try:
            with torch.no_grad(), _called_alone(module), _without_bias(module) as bias:
                offset = module.forward(_zeros(module, 1, dtype)).reshape(-1)
                weight = _stored_values(module)
                weight = _answers(module, offset, dtype) if weight is None else weight
                inputs = _drawn(module, 0, dtype)
                outputs = module.forward(inputs).reshape(-1, len(weight)) - offset
                product = inputs.to(weight.dtype).flatten(0, 1) @ weight.T
                if _distance(outputs, product) > TOLERANCE:
                    return None
                if bias is None:
                    return weight, offset.clone() if offset.any() else None
                return weight, bias + offset.to(bias.dtype)
        except Exception as error:
            pass_on_exhaustion(error)
            continue
    return None


def check_gradients(model: nn.Module) -> None:
    """Check that gradients pass through every quantised layer of a model, so that layers before it can be trained.

    Raises:
        UsageError: names a layer that they do not pass.
    """
    for path, module in quantised_layers(model).items():
        is_linear = isinstance(module, nn.Linear) or packed_widths(module) is not None
        if is_linear and (problem := gradient_problem(module)):
            raise UsageError(
                f"no gradient passes through {path} ({type(module).__name__}), which is quantised: {problem}; train on "
                "the base model unquantised, or quantised in another way"
            )


def gradient_problem(module: nn.Module) -> str:
    """Reason why no gradient, or a wrong one, passes through a linear layer; empty if the right one does.

    Also empty if the layer cannot be called here, for want of its values or its kernels.
    """
    if any(tensor.is_meta for tensor in own_tensors(module)):
        return ""
    for dtype in _dtypes(module):
        try:
            with torch.no_grad(), _called_alone(module):
                inputs, step = _drawn(module, 0, dtype), _drawn(module, 1, dtype)
                change = module.forward(inputs + step) - module.forward(inputs)
        except Exception as error:
            pass_on_exhaustion(error)
            continue
        try:
            with torch.enable_grad(), _called_alone(module):
                output = module.forward(inputs.requires_grad_(True))
                passes = output.requires_grad
                (gradient,) = torch.autograd.grad(output, inputs, change, allow_unused=True) if passes else (None,)
        except Exception as error:
            pass_on_exhaustion(error)
            return one_line(error)
        if gradient is None:
            return "it returns none"
        expected, actual = float(change.double().square().sum()), float((gradient.double() * step.double()).sum())
        return "" if abs(actual - expected) <= 2 * TOLERANCE * expected else "it returns a wrong one"
    return ""


def _answers(module: nn.Module, offset: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight `(out, in)`, as a layer's answers to the unit vectors.

    Raises:
        ValueError: the layer rounds its inputs to a fixed grid, so that its answers are not the weight.
    """
    width = linear_widths(module)[0]
    rows: list[Tensor] = []
    for start in range(0, width, UNITS):
        units = _zeros(module, min(UNITS, width - start), dtype)
        units[0].diagonal(start).fill_(1)
        answers = [2**n * (module.forward(units / 2**n).reshape(units.shape[1], -1) - offset) for n in (0, 1)]
        if _distance(*answers) > GRID_TOLERANCE:
            raise ValueError("the layer rounds its inputs to a fixed grid")
        rows.append(answers[0])
    return torch.cat(rows).T.contiguous()


def _stored_values(module: nn.Module) -> Tensor | None:
    """The values of a weight that can unpack itself, as tensor subclasses can; None if it cannot."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or type(weight).dequantize is Tensor.dequantize:
        return None
    values = weight.dequantize()
    return values.detach() if tuple(values.shape) == linear_widths(module)[::-1] else None


@contextmanager
def _without_bias(module: nn.Module) -> Iterator[Tensor | None]:
    """Set a layer's bias to 0 for a while, since values near a large bias are rounded away; yields its copy."""
    bias = getattr(module, "bias", None)
    if not isinstance(bias, Tensor) or bias.ndim != 1 or is_quantised(bias):
        yield None
        return
    kept = bias.detach().clone()
    bias.zero_()
    try:
        yield kept
    finally:
        bias.copy_(kept)


@contextmanager
def _called_alone(module: nn.Module) -> Iterator[None]:
    """Have a layer compute as in training, but without autocast."""
    # Not as it reads, which may be another mode than the one it was put in.
    was_training = vars(module)["training"]
    module.training = True
    try:
        with torch.autocast(_device(module).type, enabled=False):
            yield
    finally:
        module.training = was_training


def _has_forward(module: nn.Module) -> bool:
    return type(module).forward is not nn.Module.forward or "forward" in vars(module)


def _stated(module: Any, names: tuple[str, str]) -> tuple[int, int] | None:
    widths = [getattr(module, name, None) for name in names]
    return (widths[0], widths[1]) if all(type(width) is int and width > 0 for width in widths) else None  # type: ignore[return-value]


def _codes(module: nn.Module) -> list[Tensor]:
    return [tensor for tensor in own_tensors(module) if _is_code(tensor)]


def _is_code(tensor: Tensor) -> bool:
    return tensor.dtype in CODES or (tensor.is_floating_point() and is_quantised(tensor))


def _shape(module: nn.Module, codes: list[Tensor]) -> tuple[int, int] | None:
    """The widths that one matrix of bytes, a code for each value, has beside one scale for each output."""
    matrices = [code for code in codes if code.ndim == 2 and code.dtype != torch.uint8 and code.dtype.itemsize == 1]
    scales = {tensor.numel() for tensor in own_tensors(module) if tensor.ndim == 1 and not _is_code(tensor)}
    if len(codes) != 1 or len(matrices) != 1 or len(scales) != 1:
        return None
    (one, other), (out,) = matrices[0].shape, scales
    return (one, out) if out == other else (other, out) if out == one else None


def _linear_size(module: nn.Module) -> int | None:
    widths = _stated(module, NAMES) if isinstance(module, nn.Linear) else None
    return widths and widths[0] * widths[1]


def _dtypes(module: nn.Module) -> list[torch.dtype]:
    """Dtypes in which a layer may take its inputs, the most exact first."""
    held = [tensor.dtype for tensor in own_tensors(module) if not is_quantised(tensor)]
    return list(dict.fromkeys([torch.float32, *held, torch.bfloat16, torch.float16]))


def _device(module: nn.Module) -> torch.device:
    return next((tensor.device for inner in module.modules() for tensor in own_tensors(inner)), torch.device("cpu"))


def _zeros(module: nn.Module, count: int, dtype: torch.dtype) -> Tensor:
    """Inputs of a layer, with three axes, since some layers give two a third."""
    return torch.zeros(1, count, linear_widths(module)[0], dtype=dtype, device=_device(module))


def _drawn(module: nn.Module, seed: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, 2, linear_widths(module)[0], generator=generator).to(_device(module), dtype)


def _distance(one: Tensor, other: Tensor) -> float:
    """The difference of two tensors, relative to the second."""
    one, other = one.double(), other.double()
    return float((one - other).norm() / other.norm().clamp_min(torch.finfo(torch.float64).tiny))
