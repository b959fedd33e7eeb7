"""One adapter layer per block, after the feed-forward part.

Pfeiffer et al. 2021, arXiv 2005.00247, figure 3; AdapterHub's `seq_bn`. Where the part ends in a norm of the sum of
its output and the residual (`z = norm(x)`), the adapter reads z and is added before the norm, which is applied again:
`norm(x + U phi(D z))`. Blocks that normalise their input have no such norm; there the adapter reads the block's output
z, and is added to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from capaft.methods.bottleneck import Bottleneck
from capaft.model.block_sites import Block
from capaft.model.layers import has_own_backward
from capaft.model.site import Site
from capaft.model.targets import Targets
from capaft.support.errors import UsageError


@dataclass(frozen=True)
class Pfeiffer(Bottleneck):
    """One adapter layer per block."""

    name: ClassVar[str] = "pfeiffer"
    summary: ClassVar[str] = "an adapter layer after each block"
    equation: ClassVar[str] = "z' = norm(x + U phi(D z + a) + b), z = norm(x)"
    paper: ClassVar[str] = "arXiv 2005.00247"
    tuned_parameters: ClassVar[int] = 297_600

    def sites(self, model: nn.Module, targets: Targets, rename: dict[str, str] | None) -> tuple[Site, ...]:
        """See `Host.sites`.

        Raises:
            UsageError: the adapter would have to stand at the end of a block that a reversible model's backward skips.
        """
        sites = super().sites(model, targets, rename)
        if has_own_backward(model) and not all(site.normalises for site in sites):
            raise UsageError(
                f"pfeiffer cannot stand at the ends of the blocks of {type(model).__name__}, whose own backward passes "
                "over them; choose houlsby"
            )
        return sites

    def places(self, block: Block) -> list[Site]:
        """See `Bottleneck.places`."""
        parts = block.feed_forwards
        places = [(part.norm, part.end.width, True) for part in parts if part.norm]
        if not places and parts and block.joined:
            raise UsageError(f"pfeiffer cannot tell how wide the output of {block.path} is; choose houlsby")
        if not places:
            places = [(block.path, part.end.width, False) for part in parts[-1:]]
        return [Site(path, path, width, width, "block", "", normalises=has_norm) for path, width, has_norm in places]

    def forward(
        self, site: Site, module: nn.Module, inputs: Tensor, output: Tensor, factors: tuple[Tensor, ...]
    ) -> Tensor:
        """See `Host.forward`."""
        return output if site.normalises else output + self.change(output, factors)

    def before(self, site: Site, module: nn.Module, inputs: Tensor, factors: tuple[Tensor, ...]) -> Tensor:
        """See `Host.before`. The input of the norm is changed, so that several adapters add up in it."""
        return inputs + self.change(module.forward(inputs), factors)
