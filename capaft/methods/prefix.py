"""Prefix tuning: trained virtual tokens before the keys and values of every attention.

Li & Liang 2021, arXiv 2101.00190. The virtual tokens take part in the softmax, so they would change a model even with
values of 0; a gate that starts at 0 keeps the identity: `attention + g (attention with virtual tokens - attention)`.
A gate of 1 is the paper's method. CapaBoost widens the prefix: d masked copies of l tokens are d*l tokens under one
softmax.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from capaft.factors.factor import Factor
from capaft.methods.host import Host, whole
from capaft.model.attention_routing import Attention, Route, attention_modules, with_virtual_tokens
from capaft.model.names import canonical_path, renamed_path
from capaft.model.site import Site
from capaft.model.targets import Targets, select_sites


@dataclass(frozen=True)
class Prefix(Host):
    """Prefix tuning.

    Attributes:
        prefix_length: l, virtual tokens before copies.
    """

    name: ClassVar[str] = "prefix"
    summary: ClassVar[str] = "virtual tokens before the keys and values of each attention"
    equation: ClassVar[str] = "y = attn(q, K, V) + g (attn(q, [P_K; K], [P_V; V]) - attn(q, K, V))"
    paper: ClassVar[str] = "arXiv 2101.00190"
    size: ClassVar[str] = "prefix_length"
    learning_rate: ClassVar[float] = 3e-2
    found_with: ClassVar[int] = 73_734
    unmergeable: ClassVar[str] = "virtual tokens are no part of any weight"

    prefix_length: int = 16

    def __post_init__(self) -> None:
        whole("prefix-length", self.prefix_length)

    def sites(self, model: nn.Module, targets: Targets, rename: dict[str, str] | None) -> tuple[Site, ...]:
        """See `Host.sites`: every attention that goes through transformers' attention interface."""
        sites = [
            Site(renamed_path(canonical_path(model, path), rename), path, key, value, "attention", "")
            for path, (key, value) in attention_modules(model).items()
        ]
        return select_sites(targets, sites, "attentions")

    def prepare(self, model: nn.Module) -> list[Any]:
        """See `Host.prepare`: the model's attention goes through capaft."""
        return [Route(model)]

    def factors(self, site: Site) -> tuple[Factor, ...]:
        """See `Host.factors`; a site's input is the width of its keys, its output that of its values."""
        return (
            Factor("key", (self.prefix_length, site.in_features), 0, "uniform", site.in_features),
            Factor("value", (self.prefix_length, site.out_features), 0, "uniform", site.out_features),
            Factor("gate", (1,), None),
        )

    def forward(
        self, site: Site, module: nn.Module, inputs: Tensor, output: Tensor, factors: tuple[Tensor, ...]
    ) -> Tensor:
        """See `Host.forward`: what the attention module gives is left as it is."""
        return output

    def attend(
        self, factors: tuple[Tensor, ...], function: Attention, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """See `Host.attend`."""
        keys, values, gate = factors
        attend: Any = with_virtual_tokens
        return attend(function, *args, keys=keys, values=values, gate=gate[0], **kwargs)
