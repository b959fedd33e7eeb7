"""Quantised layers in the shapes that libraries give them, without the libraries."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import capaft


class Packed(nn.Module):
    """Eight codes of 4 bits in an int32, with scales and zeros: GPTQ."""

    def __init__(self, linear: nn.Linear, names: tuple[str, str] = ("in_features", "out_features")) -> None:
        super().__init__()
        for name, width in zip(names, (linear.in_features, linear.out_features), strict=True):
            setattr(self, name, width)
        weight = linear.weight.detach()
        low = weight.amin(1)
        scales = (weight.amax(1) - low) / 15
        codes = ((weight - low[:, None]) / scales[:, None]).round().to(torch.int64)
        shifts = 4 * torch.arange(8)
        self.register_buffer("qweight", (codes.T.reshape(-1, 8, len(weight)) << shifts[:, None]).sum(1).to(torch.int32))
        self.register_buffer("qzeros", (-low / scales).round().to(torch.int32)[None])
        self.register_buffer("scales", scales[None])
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().clone())

    def values(self) -> Tensor:
        shifts = 4 * torch.arange(8)[:, None]
        codes = (self.qweight[:, None] >> shifts & 15).flatten(0, 1)
        return (codes - self.qzeros) * self.scales

    def forward(self, x: Tensor) -> Tensor:
        out = x @ self.values().to(x.dtype)
        return out if self.bias is None else out + self.bias.to(x.dtype)


class OtherNames(Packed):
    """The names of Marlin and older GPTQ."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear, ("infeatures", "outfeatures"))


class Unnamed(nn.Module):
    """Codes of 8 bits stored `(in, out)`, a scale for each output, and no widths: EETQ."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        scales = linear.weight.detach().abs().amax(1) / 127
        codes = (linear.weight.detach() / scales[:, None]).round().to(torch.int8)
        self.weight = nn.Parameter(codes.T.contiguous(), requires_grad=False)
        self.weight_scales = nn.Parameter(scales)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        out = x @ (self.weight.to(x.dtype) * self.weight_scales.to(x.dtype))
        return out if self.bias is None else out + self.bias


class ThreeAxes(Packed):
    """Half precision inside, and always an output of three axes: AWQ."""

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x.to(torch.float16)).to(x.dtype)
        return out[None] if out.ndim == 2 else out


class Attributes(nn.Module):
    """Codes and bias are plain attributes, so that the layer has neither parameters nor buffers."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        inner = Packed(linear)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.W_q, self.bias = inner.values().T.to(torch.float16), inner.bias

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.W_q.to(x.dtype), self.bias)


class CodedTensor(Tensor):
    """A tensor subclass that shows float32 and holds codes of 8 bits: torchao, optimum-quanto."""

    codes: Tensor
    scales: Tensor

    @staticmethod
    def __new__(cls, codes: Tensor, scales: Tensor) -> CodedTensor:
        return Tensor._make_wrapper_subclass(cls, codes.shape, dtype=scales.dtype)

    def __init__(self, codes: Tensor, scales: Tensor) -> None:
        self.codes, self.scales = codes, scales

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["codes", "scales"], None

    @classmethod
    def __tensor_unflatten__(cls, inner: dict[str, Tensor], *_: Any) -> CodedTensor:
        return cls(inner["codes"], inner["scales"])

    def dequantize(self) -> Tensor:
        return self.codes * self.scales[:, None]

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is F.linear:
            x, weight, *bias = args
            return F.linear(x, weight.dequantize(), *bias, **(kwargs or {}))
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten.detach.default:
            return cls(args[0].codes, args[0].scales)
        raise NotImplementedError(f"{function} on codes")


def coded(linear: nn.Linear) -> nn.Linear:
    """A plain `nn.Linear` whose weight is a `CodedTensor`."""
    scales = linear.weight.detach().abs().amax(1) / 127
    codes = (linear.weight.detach() / scales[:, None]).round().to(torch.int8)
    linear.weight = nn.Parameter(CodedTensor(codes, scales), requires_grad=False)
    return linear


class Rounding(Packed):
    """Inputs rounded to 8 bits, through which no gradient passes."""

    def forward(self, x: Tensor) -> Tensor:
        scale = x.detach().abs().amax(-1, keepdim=True).clamp_min(1e-5) / 127
        return super().forward((x / scale).round().to(torch.int8).to(x.dtype) * scale)


class ScaleOnly(Packed):
    """Inputs rounded to 8 bits, through whose scale alone a gradient passes, and a wrong one."""

    def forward(self, x: Tensor) -> Tensor:
        scale = x.abs().amax(-1, keepdim=True).clamp_min(1e-5) / 127
        return super().forward((x / scale).round().to(torch.int8).to(x.dtype) * scale)


class Wrapped(nn.Module):
    """A layer with another inside that does the work."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.inner = linear
        self.extra = nn.Linear(linear.in_features, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Opaque(nn.Module):
    """Codes of 4 bits, and nothing that tells how they are packed."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.register_buffer("data_codes", torch.zeros(len(linear.weight), 4, dtype=torch.uint8))
        self.register_buffer("norm", torch.ones(3))
        self.width = len(linear.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(*x.shape[:-1], self.width)


LAYERS: dict[str, Callable[[nn.Linear], nn.Module]] = {
    "packed": Packed,
    "other names": OtherNames,
    "unnamed": Unnamed,
    "three axes": ThreeAxes,
    "attributes": Attributes,
    "subclass": coded,
}


def quantise(model: Any, make: Callable[[nn.Linear], nn.Module], ends: str = "query,key,value,dense") -> Any:
    """Replace the linear layers of a model's body."""
    for path, module in list(model.named_modules()):
        if type(module) is nn.Linear and "pooler" not in path and path.rsplit(".", 1)[-1] in ends.split(","):
            model.set_submodule(path, make(module))
    return model


def loaded_on_codes(directory: Path) -> tuple[nn.Module, nn.Module]:
    """An adapter loaded on layers that pass no gradient, and the plain model that it was saved from."""
    model = tiny.bert()
    tiny.scramble(capaft.attach(model, "lora"))
    capaft.save(model, directory / "adapter")
    packed = quantise(tiny.bert(), Rounding)
    with pytest.warns(UserWarning, match="weights are quantised"):
        capaft.load(packed, directory / "adapter")
    return packed, model
