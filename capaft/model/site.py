"""A site: one place in a model where a host attaches, under a name that survives wrappers and heads.

`layer.0.attention.self.query` is the same site in a bare encoder, in a classifier built on it, and inside DDP. A site
usually is a weight seen as a matrix `(out, in)`, whatever its layout: a linear layer, a slice of a fused one, a
convolution's kernel, an embedding, or one expert of a packed stack.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

# Dtypes whose entries are values, without a scale beside them.
VALUES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

SiteKind = Literal["linear", "conv", "embedding", "experts", "bias", "block", "attention", "head"]


@dataclass(frozen=True)
class Rows:
    """Rows of a fused projection that belong to a site: `block` rows from `start` in each of `groups` runs of `stride`.

    One group is a plain slice; several are heads that hold their query, key and value side by side.
    """

    start: int
    block: int
    stride: int
    groups: int = 1

    @property
    def count(self) -> int:
        """Number of rows."""
        return self.block * self.groups

    def take(self, values: Tensor, axis: int) -> Tensor:
        """The rows, in order, along an axis of size `groups * stride`."""
        if self.groups == 1:
            return values.narrow(axis, self.start, self.block)
        axis %= values.ndim
        return self.view(values, axis).flatten(axis, axis + 1)

    def view(self, values: Tensor, axis: int) -> Tensor:
        """The rows as a view, with groups and block as axes of their own."""
        axis %= values.ndim
        return values.unflatten(axis, (self.groups, self.stride)).narrow(axis + 1, self.start, self.block)


@dataclass(frozen=True)
class Site:
    """One place where a host attaches.

    Attributes:
        path: canonical name, which seeds the site's streams; a part of a module is `path#part`.
        module: path of the module in the model at hand.
        in_features: width of the input; for a kernel, the number of inputs that one output sums over.
        out_features: width of the output, or of the part.
        kind: of the module.
        parameter: the module's parameter that the site is a view of; empty for a site that is not a weight.
        transposed: the weight is stored `(in, out)`, as transformers' Conv1D and embeddings do.
        rows: the site's rows of a fused projection; None for all.
        index: of the site's matrix in a packed parameter; None if the parameter is one matrix.
        tied: further modules that share the weight, and so are the same site.
        parametrised: the model reads the weight without calling the module, or the module is not a plain product, so
            the weight itself has to change while the model reads it.
        source: path of the module whose input the site takes; empty for the site's own module.
        scales: the side of the site that a rescaling host acts on.
        normalises: the module is the norm of a residual sum, and is applied again to the host's addition to the sum.
        rank: the rank that the user chose for this site; None for the host's own.
    """

    path: str
    module: str
    in_features: int
    out_features: int
    kind: SiteKind = "linear"
    parameter: str = "weight"
    transposed: bool = False
    rows: Rows | None = None
    index: int | None = None
    tied: tuple[str, ...] = ()
    parametrised: bool = False
    source: str = ""
    scales: Literal["output", "input"] = "output"
    normalises: bool = False
    rank: int | None = None

    @property
    def modules(self) -> tuple[str, ...]:
        """Paths of all modules that are this site."""
        return (self.module, *self.tied)

    @property
    def part(self) -> str:
        """Name of the site within its module: `q` of a fused projection; empty for the whole module."""
        return self.path.partition("#")[2]

    def stored(self, model: nn.Module) -> Tensor:
        """The parameter that the site is a view of, as the model stores it."""
        return stored_parameter(model.get_submodule(self.module), self.parameter)

    def is_computed(self, model: nn.Module) -> bool:
        """True if the weight is a function of other parameters, as under a weight norm, and none by itself."""
        module = model.get_submodule(self.module)
        return self.parameter not in module._parameters and self.parameter not in module._buffers

    def is_quantised(self, model: nn.Module) -> bool:
        """True if the module holds the site's parameter as codes, or under no name that is known."""
        whole = self.kind == "linear" and self.rows is None
        stored = stored_parameter(model.get_submodule(self.module), self.parameter)
        return is_quantised(stored, self.in_features * self.out_features if whole else None)

    def weight(self, model: nn.Module) -> Tensor:
        """The site's part of the base weight, `(out, in)`."""
        return self.matrix(self.stored(model))

    def matrix(self, weight: Tensor) -> Tensor:
        """The site's part of a weight as stored, as a matrix `(out, in)`."""
        viewed = self._view(weight)
        return viewed.flatten(0, 1) if self.rows else viewed

    def replaced(self, weight: Tensor, matrix: Tensor) -> Tensor:
        """A weight as stored, with the site's part replaced by a matrix `(out, in)`."""
        if self.rows is None and self.index is None:
            return (matrix.T if self.transposed else matrix).reshape(weight.shape)
        result = weight.clone(memory_format=torch.contiguous_format)
        target = self._view(result)
        target.copy_(matrix.reshape(target.shape))
        return result

    def _view(self, weight: Tensor) -> Tensor:
        if self.index is not None:
            weight = weight[self.index]
        if weight.ndim < 2:
            return weight.reshape(-1, 1)
        matrix = weight.T if self.transposed else weight.flatten(1)
        return self.rows.view(matrix, 0) if self.rows else matrix


def stored_parameter(module: nn.Module, parameter: str) -> Any:
    """A module's parameter as it is stored, past any adapter that changes the value that reading it gives.

    None, or anything that is not a tensor, if the module keeps what it computes with in another form.
    """
    stored = module._parameters.get(parameter)
    return getattr(module, parameter, None) if stored is None else stored


def is_quantised(weight: Any, size: int | None = None) -> bool:
    """True if a weight holds codes rather than values: float8 too means nothing without its scale.

    So does a tensor subclass with an arithmetic of its own, whatever dtype it shows, and what is not a tensor at all.

    Args:
        weight: what a module holds.
        size: the number of values that it would hold; others are packed into bits of a dtype, or kept elsewhere.
    """
    if not isinstance(weight, Tensor) or weight.dtype not in VALUES:
        return True
    if type(weight) not in (Tensor, nn.Parameter) and _has_own_arithmetic(type(weight)):
        return True
    return size is not None and weight.numel() not in (0, size)


def _has_own_arithmetic(cls: Any) -> bool:
    """True if a class of tensors computes in another way than torch's own classes do, those of sharding included."""
    if cls.__module__.startswith("torch."):
        return False
    base: Any = Tensor
    defined = (getattr(cls.__torch_function__, "__func__", None), cls.__torch_dispatch__, cls.dequantize)
    plain = (base.__torch_function__.__func__, base.__torch_dispatch__, base.dequantize)
    return any(one not in (None, other) for one, other in zip(defined, plain, strict=True))
