"""Adapter layers after the attention and after the feed-forward part, before their residual connections.

Houlsby et al. 2019, arXiv 1902.00751, figure 2; AdapterHub's `double_seq_bn`: `y + U phi(D y)` on the output y of the
last projection of each part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from capaft.config.choices import HOULSBY_ACTIVATION, Activation
from capaft.methods.bottleneck import Bottleneck
from capaft.model.block_sites import Block
from capaft.model.site import Site


@dataclass(frozen=True)
class Houlsby(Bottleneck):
    """Two adapter layers per block."""

    name: ClassVar[str] = "houlsby"
    summary: ClassVar[str] = "an adapter layer after each attention and each feed-forward part"
    equation: ClassVar[str] = "y' = y + U phi(D y + a) + b"
    paper: ClassVar[str] = "arXiv 1902.00751"
    tuned_parameters: ClassVar[int] = 595_200

    activation: Activation = HOULSBY_ACTIVATION

    def places(self, block: Block) -> list[Site]:
        """See `Bottleneck.places`."""
        ends = (*block.ends, *(part.end for part in block.feed_forwards))
        return [Site(end.path, end.path, end.width, end.width, "block", "") for end in ends]
