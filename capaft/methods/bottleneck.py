"""The base class of adapter layers: a bottleneck `U phi(D x + a) + b`, wherever in a block it stands."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from capaft.config.choices import ACTIVATION, BOTTLENECK, SCALING, Activation
from capaft.factors.factor import Factor
from capaft.methods.host import Host, check_number, check_whole
from capaft.model.block_sites import Block, find_block_sites
from capaft.model.site import Site
from capaft.model.targets import Targets
from capaft.support.errors import UsageError

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "swish": F.silu,
    "tanh": F.tanh,
    "identity": lambda x: x,
}


@dataclass(frozen=True)
class Bottleneck(Host):
    """An adapter layer.

    Attributes:
        bottleneck: hidden width before copies.
        activation: phi, one of `ACTIVATIONS`.
        bias: True if the two projections have biases.
        scaling: scale of the output.
    """

    size: ClassVar[str] = "bottleneck"
    unmergeable: ClassVar[str] = "an adapter layer has an activation between its projections, so it is not a matrix"

    bottleneck: int = BOTTLENECK
    activation: Activation = ACTIVATION
    bias: bool = True
    scaling: float = SCALING

    def __post_init__(self) -> None:
        check_whole("bottleneck", self.bottleneck)
        object.__setattr__(self, "scaling", check_number("scaling", self.scaling))
        if not isinstance(self.activation, str) or self.activation not in ACTIVATIONS:
            raise UsageError(f"--activation must be one of {', '.join(ACTIVATIONS)}, got {self.activation}")
        if not isinstance(self.bias, bool):
            raise UsageError(f"--bias must be true or false, got {self.bias}")

    @abstractmethod
    def places(self, block: Block) -> list[Site]:
        """The sites of one block, each named by its path in the model."""

    def sites(self, model: nn.Module, targets: Targets, rename: dict[str, str] | None) -> tuple[Site, ...]:
        """See `Host.sites`. By default, the places of every block; otherwise those whose names match the targets."""
        return find_block_sites(model, targets, rename, self.places, self.name)

    def factors(self, site: Site) -> tuple[Factor, ...]:
        """See `Host.factors`. The up bias has no hidden axis: it is added once, however many copies there are."""
        weights = (
            Factor("down", (self.bottleneck, site.in_features), 0, "uniform", site.in_features),
            Factor("up", (site.out_features, self.bottleneck), 1),
        )
        biases = (Factor("down_bias", (self.bottleneck,), 0), Factor("up_bias", (site.out_features,), None))
        return weights + (biases if self.bias else ())

    def forward(
        self, site: Site, module: nn.Module, inputs: Tensor, output: Tensor, factors: tuple[Tensor, ...]
    ) -> Tensor:
        """See `Host.forward`. Without a source, the bottleneck reads the module's output, and is added to it.

        Some mixtures of experts return the positions of all texts in one axis.
        """
        return output + self.change(inputs if site.source else output, factors).reshape(output.shape)

    def change(self, x: Tensor, factors: tuple[Tensor, ...]) -> Tensor:
        """Output of the bottleneck, `(..., in) -> (..., out)`."""
        down, up, *biases = factors
        down_bias, up_bias = biases or (None, None)
        hidden = ACTIVATIONS[self.activation](F.linear(x, down, down_bias))
        return self.scaling * F.linear(hidden, up, up_bias)

    def product(self, site: Site, factors: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """See `Host.product`. This is the bottleneck without its activation."""
        return self.scaling * factors[1], factors[0]
