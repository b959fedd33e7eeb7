"""The base class of methods with a low-rank update `dW = s U D`: the side branch, the merge, and the product."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from capaft.methods.host import Host
from capaft.model.site import Site

CONVOLVE = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}


class LowRank(Host):
    """A host whose update of a weight is a scaled product of an up and a down factor."""

    default_targets: ClassVar[str] = "qv"
    additive: ClassVar[bool] = True
    drops: ClassVar[bool] = True
    kinds: ClassVar[frozenset[str]] = frozenset(["linear", "conv", "embedding"])

    @abstractmethod
    def update(self, site: Site, factors: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, float]:
        """The factors of the update `dW = s U D`: U `(out, hidden)`, D `(hidden, in)` and s."""

    def forward(
        self, site: Site, module: nn.Module, inputs: Tensor, output: Tensor, factors: tuple[Tensor, ...]
    ) -> Tensor:
        """See `Host.forward`. One `addmm` adds and scales, to avoid a second full-size tensor."""
        up, down, scale = self.update(site, factors)
        if site.kind == "conv":
            return output + scale * _convolved(module, inputs, down, up)
        hidden = F.embedding(inputs, down.T) if site.kind == "embedding" else F.linear(inputs, down)
        if not output.is_contiguous() or site.kind == "embedding":
            # Strides must not change: with another layout the next layer would round differently. And under autocast
            # a lookup has its own dtype, which `addmm` would change.
            return output.add(F.linear(hidden, up).to(output.dtype), alpha=scale)
        flat = output.view(-1, output.shape[-1])
        return flat.addmm(hidden.reshape(-1, hidden.shape[-1]), up.T, alpha=scale).view(output.shape)

    def merged(
        self, site: Site, weight: Tensor, bias: Tensor | None, factors: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor | None]:
        """See `Host.merged`."""
        up, down, scale = self.update(site, factors)
        return weight.addmm(up, down, alpha=scale), bias

    def product(self, site: Site, factors: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """See `Host.product`."""
        up, down, scale = self.update(site, factors)
        return scale * up, down


def _convolved(module: Any, inputs: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """Apply the down factor as the kernel of a narrow convolution, then the up factor at every position."""
    kernel = down.view(len(down), *module.weight.shape[1:])
    convolve = CONVOLVE[kernel.ndim]
    hidden = convolve(inputs, kernel, None, module.stride, module.padding, module.dilation)
    return convolve(hidden, up.view(*up.shape, *[1] * (kernel.ndim - 2)))
