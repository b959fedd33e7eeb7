"""The update of every adapted weight as one exact pair of factors, which is what other tools call a LoRA.

No weight is formed and nothing is decomposed: NOLA's factors have rank r, CapaBoost's copies stand side by side in rank
d * r, and the slices of a fused projection follow one another, each with zeros in the rows that are not its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from capaft.adapter.activation import get_adapter
from capaft.methods.host import Host
from capaft.model.site import Rows, Site
from capaft.support.errors import UsageError


@dataclass(frozen=True, eq=False)
class LowRankPair:
    """The update `dW = up @ down` of one weight.

    Attributes:
        site: the weight as one site: of a fused projection as a whole, of packed experts one matrix.
        down: `(rank, in)`, float32, contiguous, on the CPU. A kernel's inputs are flat, `in/groups * kh * kw`; those of
            an embedding are its rows.
        up: `(out, rank)`, the same, with the method's scale in it.
    """

    site: Site
    down: Tensor
    up: Tensor

    @property
    def rank(self) -> int:
        """Width between the factors."""
        return len(self.down)

    def padded(self, rank: int) -> LowRankPair:
        """The same update in a rank that is at least the pair's, with zeros in what is added."""
        missing = rank - self.rank
        assert missing >= 0
        down = torch.cat([self.down, self.down.new_zeros(missing, self.down.shape[1])])
        up = torch.cat([self.up, self.up.new_zeros(len(self.up), missing)], 1)
        return replace(self, down=down, up=up)


def low_rank_pairs(model: nn.Module, name: str = "default") -> tuple[LowRankPair, ...]:
    """The update of each weight that an adapter changes, in the order of the weights' canonical names.

    What the adapter trains beside its method, such as a head, is not among them.

    Args:
        model: a model with the adapter, which need not be active; quantised weights are as good as others.
        name: the adapter's name.

    Raises:
        UsageError: there is no such adapter, or its method does not add a product of two factors to each weight, or
            it holds numbers that are not finite.
    """
    adapter = get_adapter(model, name)
    adapter.check_places(model)
    host = adapter.plan.stack.host
    if host is None:
        raise UsageError(f"the method {adapter.plan.stack.method} has no low-rank update; merge the adapter instead")
    return whole_pairs((site, *_product(host, site, factors)) for site, factors in adapter.factors_of_sites())


def whole_pairs(products: Iterable[tuple[Site, Tensor, Tensor]]) -> tuple[LowRankPair, ...]:
    """The sums of products on one weight each, in the order of the weights' canonical names.

    Args:
        products: of each site an up factor, `(out, hidden)`, and a down factor, `(hidden, in)`.

    Raises:
        UsageError: one holds numbers that are not finite.
    """
    pairs: dict[str, LowRankPair] = {}
    for product in products:
        pair = _pair(*product)
        before = pairs.get(pair.site.path)
        pairs[pair.site.path] = pair if before is None else _sum(before, pair)
    return tuple(pairs[path] for path in sorted(pairs))


def _product(host: Host, site: Site, factors: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """The up and the down factor of a site.

    Raises:
        UsageError: the method adds something else to the weight.
    """
    # A product alone is not enough: that of DoRA is normalised, and that of an adapter layer has an activation inside.
    product = host.product(site, factors) if host.additive and not host.unmergeable else None
    if product is None:
        reason = host.unmergeable or "its update is more than a product of two factors that is added to a weight"
        raise UsageError(f"{host.name} has no pair of factors for each weight: {reason}")
    return product


def _pair(site: Site, up: Tensor, down: Tensor) -> LowRankPair:
    """The update of one site, as an update of the whole weight that it is a part of.

    Raises:
        UsageError: it holds numbers that are not finite.
    """
    up, down = (factor.detach().cpu().float().contiguous() for factor in (up, down))
    if not (torch.isfinite(up).all() and torch.isfinite(down).all()):
        raise UsageError(f"the adapter has numbers at {site.path} that are not finite; its training has diverged")
    return LowRankPair(whole_site(site), down, up if site.rows is None else spread(site.rows, up))


def whole_site(site: Site) -> Site:
    """The weight that a site is a part of: a fused projection in place of a slice of it."""
    if site.rows is None:
        return site
    width = site.rows.groups * site.rows.stride
    return replace(site, path=site.path.partition("#")[0], out_features=width, rows=None)


def spread(rows: Rows, values: Tensor) -> Tensor:
    """Values of some rows of a fused projection, `(rows, ...)`, among zeros for the others."""
    whole = values.new_zeros(rows.groups * rows.stride, *values.shape[1:])
    target = rows.view(whole, 0)
    target.copy_(values.view(target.shape))
    return whole


def _sum(one: LowRankPair, other: LowRankPair) -> LowRankPair:
    """The sum of two updates of one weight: their factors side by side."""
    return replace(one, down=torch.cat([one.down, other.down]), up=torch.cat([one.up, other.up], 1))
