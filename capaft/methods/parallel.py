"""An adapter layer beside the feed-forward part: it reads that part's input, and is added to its output.

He et al. 2022, arXiv 2110.04366, section 3.3 (the scaled parallel adapter); AdapterHub's `par_bn`, with a scale of 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from capaft.config.choices import PARALLEL_SCALING
from capaft.methods.bottleneck import Bottleneck
from capaft.model.block_sites import Block
from capaft.model.site import Site


@dataclass(frozen=True)
class Parallel(Bottleneck):
    """One adapter layer per feed-forward part, in parallel."""

    name: ClassVar[str] = "parallel"
    summary: ClassVar[str] = "an adapter layer beside each feed-forward part"
    equation: ClassVar[str] = "y' = FFN(x) + s (U phi(D x + a) + b)"
    paper: ClassVar[str] = "arXiv 2110.04366"
    tuned_parameters: ClassVar[int] = 297_600

    scaling: float = PARALLEL_SCALING

    def places(self, block: Block) -> list[Site]:
        """See `Bottleneck.places`."""
        return [
            Site(part.end.path, part.end.path, part.end.width, part.end.width, "block", "", source=part.enters)
            for part in block.feed_forwards
        ]
