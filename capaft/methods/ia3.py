"""IA3: rescales keys, values and the inner activations of feed-forward parts by trained vectors.

Liu et al. 2022, arXiv 2205.05638, section 3.3. The vectors are trained as their difference from 1.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor, nn

from capaft.factors.factor import Factor
from capaft.methods.host import Host
from capaft.model.block_parts import linear_layers
from capaft.model.block_sites import Block, find_blocks, warn_of_left_out
from capaft.model.names import canonical_path
from capaft.model.site import Site, stored_parameter
from capaft.model.targets import Targets
from capaft.model.weight_sites import find_weight_sites
from capaft.support.errors import UsageError

# Names of keys and values of a second kind, such as those for global tokens.
KEY_OR_VALUE = re.compile(r"(^|[._])(keys?|values?)(_[a-z]+)?$")


@dataclass(frozen=True)
class Ia3(Host):
    """IA3, without options."""

    name: ClassVar[str] = "ia3"
    summary: ClassVar[str] = "keys, values and inner activations rescaled"
    equation: ClassVar[str] = "y = (1 + s) * W x, in feed-forward parts W ((1 + s) * x)"
    paper: ClassVar[str] = "arXiv 2205.05638"
    kinds: ClassVar[frozenset[str]] = frozenset(["linear", "conv", "embedding"])
    learning_rate: ClassVar[float] = 3e-2
    tuned_parameters: ClassVar[int] = 13_824
    narrow: ClassVar[str] = "it rescales outputs one by one, so masked copies only add up to another vector"

    def sites(self, model: nn.Module, targets: Targets, rename: dict[str, str] | None) -> tuple[Site, ...]:
        """See `Host.sites`. By default, keys and values, and the last projections of feed-forward parts."""
        blocks = _blocks(model, may_be_empty=bool(targets.modules))
        parts = [part for block in blocks for part in block.feed_forwards]
        ends = {canonical_path(model, path) for part in parts for path in part.closing}
        if not targets.modules:
            for part in parts:
                if not part.closing:
                    raise UsageError(
                        f"ia3 cannot rescale inside {part.end.path}, whose experts are packed; choose its layers "
                        "with --target-modules kv"
                    )
            # Not by the names of the ends: they may be renamed, or too many for one pattern.
            outputs = {site.path for site in find_weight_sites(model, replace(targets, modules="kv"), rename)}
            inner = find_weight_sites(model, replace(targets, modules="kv,mlp"), rename)
            sites = tuple(site for site in inner if site.path in outputs or canonical_path(model, site.module) in ends)
            warn_of_left_out(self.name, _unscaled(model, blocks, {site.module for site in sites}))
        else:
            sites = find_weight_sites(model, targets, rename)
        for site in sites:
            if site.parametrised:
                raise UsageError(
                    f"ia3 cannot rescale {site.module}, which is read but not called; leave it out with "
                    "--exclude-modules"
                )
        return tuple(
            replace(site, scales="input") if canonical_path(model, site.module) in ends else site for site in sites
        )

    def factors(self, site: Site) -> tuple[Factor, ...]:
        """See `Host.factors`."""
        return (Factor("scale", (site.in_features if site.scales == "input" else site.out_features,), None),)

    def before(self, site: Site, module: nn.Module, inputs: Tensor, factors: tuple[Tensor, ...]) -> Tensor:
        """See `Host.before`."""
        return inputs + inputs * factors[0]

    def forward(
        self, site: Site, module: nn.Module, inputs: Tensor, output: Tensor, factors: tuple[Tensor, ...]
    ) -> Tensor:
        """See `Host.forward`."""
        if site.scales == "input":
            return output
        # A convolution's channels come before its positions.
        scale = (
            factors[0].view(-1, *[1] * (stored_parameter(module, "weight").ndim - 2))
            if site.kind == "conv"
            else factors[0]
        )
        return output + output * scale

    def merged(
        self, site: Site, weight: Tensor, bias: Tensor | None, factors: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor | None]:
        """See `Host.merged`."""
        scale = 1 + factors[0]
        if site.scales == "input":
            return weight * scale, bias
        return weight * scale[:, None], None if bias is None else bias * scale

    def rows_of(self, site: Site, factors: tuple[Tensor, ...], start: int, stop: int) -> tuple[Tensor, ...]:
        """See `Host.rows_of`."""
        return factors if site.scales == "input" else (factors[0][start:stop],)


def _blocks(model: nn.Module, may_be_empty: bool) -> list[Block]:
    """The model's blocks; none, if there may be none."""
    try:
        return find_blocks(model)
    except UsageError:
        if may_be_empty:
            return []
        raise


def _unscaled(model: nn.Module, blocks: list[Block], modules: set[str]) -> Iterator[str]:
    """Paths of the attentions, or the keys and values in them, that have no scale, and of what is no such part."""
    for block in blocks:
        for attention in block.attentions:
            prefix = attention.path + "."
            if not any(module.startswith(prefix) for module in modules):
                yield attention.path
                continue
            for name in linear_layers(model.get_submodule(attention.path)):
                if KEY_OR_VALUE.search(name) and prefix + name not in modules:
                    yield prefix + name
        yield from block.others
