"""The places of adapters by the parameter that each changes, their factors made when they are needed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from capaft.adapter.merged_weight import Update
from capaft.adapter.module import Adapter
from capaft.methods.head import Head
from capaft.methods.host import Host
from capaft.model.site import Site


@dataclass(frozen=True, eq=False)
class Place:
    """One place of an adapter, whose factors are made when they are needed.

    Attributes:
        adapter: the adapter.
        index: of the place in its plan.
        weight: multiplies the update.
    """

    adapter: Adapter
    index: int
    weight: float

    @property
    def host(self) -> Host:
        """The method that changes the place."""
        return self.adapter.plan.placed[self.index][0]

    @property
    def site(self) -> Site:
        """The site."""
        return self.adapter.plan.placed[self.index][1]

    def update(self, site: Site | None = None) -> Update:
        """The update, of this site or of the same values somewhere else."""
        return Update(self.host, site or self.site, self.adapter.factors_of_place(self.index), self.weight)

    def changes_bias(self, bias: Tensor) -> bool:
        """True if the method gives the site another bias than it has."""
        site = self.site
        values = torch.empty(site.out_features, site.in_features, device="meta")
        old = torch.empty(site.rows.count if site.rows else len(bias), device="meta")
        factors = tuple(factor.to("meta") for factor in self.adapter.factors_of_place(self.index))
        return self.host.merged(site, values, old, factors)[1] is not old


def places_of(adapters: Sequence[tuple[Adapter, float]]) -> dict[str, list[Place]]:
    """The places of adapters by the name of the parameter that each changes; the head is that of the first.

    Args:
        adapters: each with the weight of its updates.
    """
    places: dict[str, list[Place]] = defaultdict(list)
    for number, (adapter, weight) in enumerate(adapters):
        for index, (host, site) in enumerate(adapter.plan.placed):
            if isinstance(host, Head):
                if number:
                    continue
                weight = 1.0
            name = f"{site.module}.{site.parameter}".removeprefix(".")
            places[name].append(Place(adapter, index, weight))
    return dict(places)
