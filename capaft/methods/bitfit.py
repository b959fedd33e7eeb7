"""BitFit: trains only the biases of linear layers and layer norms (Ben Zaken et al. 2021, arXiv 2106.10199)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from capaft.factors.factor import Factor
from capaft.methods.host import Host
from capaft.model.layers import layer_kind, read_without_calling
from capaft.model.names import base_modules, canonical_path, in_head, renamed_path
from capaft.model.site import Site, is_quantised, stored_parameter
from capaft.model.targets import Targets, select_sites
from capaft.support.errors import UsageError


@dataclass(frozen=True)
class Bitfit(Host):
    """BitFit, without options. The biases are trained as their difference from the base model's."""

    name: ClassVar[str] = "bitfit"
    summary: ClassVar[str] = "the biases of linear layers and layer norms"
    equation: ClassVar[str] = "y = W x + b + c"
    paper: ClassVar[str] = "arXiv 2106.10199"
    additive: ClassVar[bool] = True
    learning_rate: ClassVar[float] = 6e-3
    tuned_parameters: ClassVar[int] = 26_112
    narrow: ClassVar[str] = "a bias is added once, so masked copies only add up to another bias"

    def sites(self, model: nn.Module, targets: Targets, rename: dict[str, str] | None) -> tuple[Site, ...]:
        """See `Host.sites`. By default, every bias outside the output head."""
        read = read_without_calling(model)
        sites = []
        for path, module in base_modules(model):
            # Packed layers keep it as a buffer, or as they like.
            bias = stored_parameter(module, "bias")
            is_norm = isinstance(module, nn.LayerNorm) or type(module).__name__.endswith("LayerNorm")
            if (
                is_quantised(bias)
                or bias.ndim != 1
                or in_head(model, path)
                or not (is_norm or layer_kind(module) == "linear")
            ):
                continue
            name = renamed_path(canonical_path(model, path), rename)
            # Some norms of images move the channels, so that the bias does not belong to the last axis of the output.
            moves = isinstance(module, nn.LayerNorm) and type(module).forward is not nn.LayerNorm.forward
            sites.append(Site(name, path, 1, len(bias), "bias", "bias", parametrised=path in read or moves))
        if not sites:
            raise UsageError(f"{type(model).__name__} has no biases to train; choose another method")
        return select_sites(targets, sites, "biases")

    def factors(self, site: Site) -> tuple[Factor, ...]:
        """See `Host.factors`."""
        return (Factor("bias", (site.out_features,), None),)

    def forward(
        self, site: Site, module: nn.Module, inputs: Tensor, output: Tensor, factors: tuple[Tensor, ...]
    ) -> Tensor:
        """See `Host.forward`."""
        return output + factors[0]

    def merged(
        self, site: Site, weight: Tensor, bias: Tensor | None, factors: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor | None]:
        """See `Host.merged`. The site's weight is the bias itself, as a matrix of one column."""
        return weight + factors[0][:, None], bias

    def rows_of(self, site: Site, factors: tuple[Tensor, ...], start: int, stop: int) -> tuple[Tensor, ...]:
        """See `Host.rows_of`."""
        return (factors[0][start:stop],)
