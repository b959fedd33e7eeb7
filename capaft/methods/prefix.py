"""Prefix tuning: trained virtual tokens before the keys and values of every attention.

Li & Liang 2021, arXiv 2101.00190. The virtual tokens take part in the softmax, so they would change a model even with
values of 0; a gate that starts at 0 keeps the model unchanged at the start: `attention + g (attention with virtual
tokens - attention)`. A gate of 1 is the paper's method. CapaBoost widens the prefix: d masked copies of l tokens are
d*l tokens under one softmax.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from capaft.config.choices import PREFIX_LENGTH
from capaft.factors.factor import Factor
from capaft.methods.host import Host, check_whole
from capaft.model.attention_routing import Attention, Route, attention_modules
from capaft.model.block_sites import find_blocks, warn_of_left_out
from capaft.model.names import canonical_path, renamed_path
from capaft.model.site import Site
from capaft.model.targets import Targets, select_sites
from capaft.support.errors import UsageError

# Arguments that pick keys by index, or write keys to a cache: such a call cannot take keys of another length.
KEYS_BY_NUMBER = ("indices", "block_indices", "cache")


@dataclass(frozen=True)
class Prefix(Host):
    """Prefix tuning.

    Attributes:
        prefix_length: l, the number of virtual tokens before copies.
    """

    name: ClassVar[str] = "prefix"
    summary: ClassVar[str] = "virtual tokens before the keys and values of each attention"
    equation: ClassVar[str] = "y = attn(q, K, V) + g (attn(q, [P_K; K], [P_V; V]) - attn(q, K, V))"
    paper: ClassVar[str] = "arXiv 2101.00190"
    size: ClassVar[str] = "prefix_length"
    learning_rate: ClassVar[float] = 3e-2
    tuned_parameters: ClassVar[int] = 73_734
    unmergeable: ClassVar[str] = "virtual tokens are not part of any weight"

    prefix_length: int = PREFIX_LENGTH

    def __post_init__(self) -> None:
        check_whole("prefix-length", self.prefix_length)

    def sites(self, model: nn.Module, targets: Targets, rename: dict[str, str] | None) -> tuple[Site, ...]:
        """See `Host.sites`. By default, every attention that goes through transformers' attention interface."""
        sites = [
            Site(renamed_path(canonical_path(model, path), rename), path, key, value, "attention", "")
            for path, (key, value) in attention_modules(model).items()
        ]
        if not targets.modules:
            warn_of_left_out(self.name, _unreached(model, {site.module for site in sites}))
        return select_sites(targets, sites, "attentions")

    def prepare(self, model: nn.Module) -> list[Any]:
        """See `Host.prepare`. The model's attention is routed through capaft."""
        return [Route(model)]

    def factors(self, site: Site) -> tuple[Factor, ...]:
        """See `Host.factors`. A site's input width is that of its keys, its output width that of its values."""
        return (
            Factor("key", (self.prefix_length, site.in_features), 0, "uniform", site.in_features),
            Factor("value", (self.prefix_length, site.out_features), 0, "uniform", site.out_features),
            Factor("gate", (1,), None),
        )

    def forward(
        self, site: Site, module: nn.Module, inputs: Tensor, output: Tensor, factors: tuple[Tensor, ...]
    ) -> Tensor:
        """See `Host.forward`. The output of the attention module does not change here; see `attend`."""
        return output

    def attend(
        self, factors: tuple[Tensor, ...], function: Attention, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """See `Host.attend`."""
        keys, values, gate = factors
        attend: Any = with_virtual_tokens
        return attend(function, *args, keys=keys, values=values, gate=gate[0], **kwargs)


def _unreached(model: nn.Module, modules: set[str]) -> Iterator[str]:
    """Paths of the attentions that hold none of these modules, and of what stands in for attention in other blocks."""
    try:
        blocks = find_blocks(model)
    except UsageError:
        return
    for block in blocks:
        for attention in block.attentions:
            if not any(f"{module}.".startswith(attention.path + ".") for module in modules):
                yield attention.path
        yield from () if block.attentions else block.others


def with_virtual_tokens(
    attention: Attention,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    keys: Tensor,
    values: Tensor,
    gate: Tensor,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention to `l` virtual tokens and the real ones: `real + gate * (joint - real)`.

    `joint` is prefix tuning (Li & Liang 2021, arXiv 2101.00190): one softmax over both, in which every query sees every
    virtual token, with no position bias. It equals `(1 - λ) real + λ virtual` (He et al. 2022, arXiv 2110.04366,
    section 3.1), where λ is the virtual tokens' share of the softmax; the gate multiplies λ. A gate of 0 gives exactly
    the base model's output. Under attention dropout the two calls draw separate masks, so the random stream advances.

    Args:
        attention: the function to wrap.
        module: the attention module.
        query: `(batch, heads, queries, head)`.
        key: `(batch, key heads, T, head)`.
        value: `(batch, key heads, T, head of values)`.
        mask: as in `Participant.attend`.
        keys: `(l, key heads * head)`.
        values: `(l, key heads * head of values)`.
        gate: g, a single element.
        **kwargs: the module's other arguments.

    Returns:
        The output `(batch, queries, heads, head of values)`, and the weights of the real tokens where the base model
        returns weights; the remaining weight is the virtual tokens'.

    Raises:
        UsageError: the widths do not fit, or the module picks its keys in a way that leaves no room for more.
    """
    for virtual, real in ((keys, key), (values, value)):
        if virtual.shape[1] != real.shape[1] * real.shape[3]:
            raise UsageError(
                f"{type(module).__name__} attends with {real.shape[1]} heads of size {real.shape[3]}, which virtual "
                f"tokens of width {virtual.shape[1]} do not fit; choose another method"
            )
    for name in KEYS_BY_NUMBER:
        if kwargs.get(name) is not None:
            raise UsageError(
                f"{type(module).__name__} attends with {name}, which leaves no room for virtual tokens; choose another "
                "method"
            )
    tokens, length = len(keys), key.shape[2]
    wider = dict(kwargs)
    if kwargs.get("position_bias") is not None:
        wider["position_bias"] = _prepended(kwargs["position_bias"], length, tokens)
    if mask is None and kwargs.get("is_causal") and query.shape[2] > 1:
        # Aligned as sdpa aligns it, which matters while a static cache is longer than the tokens seen so far.
        wide_mask: Tensor | None = torch.ones(query.shape[2], length, dtype=torch.bool, device=key.device).tril()
    else:
        wide_mask = mask
    if wide_mask is not None:
        wide_mask = _prepended(wide_mask[(None,) * (4 - wide_mask.ndim)], length, tokens)
    real, real_weights = attention(module, query, key, value, mask, **kwargs)
    joint, weights = attention(module, query, _with(keys, key), _with(values, value), wide_mask, **wider)
    gate = gate.reshape(()).to(real.dtype)
    if real_weights is not None and weights is not None:
        real_weights = real_weights + gate * (weights[..., tokens:] - real_weights)
    return real + gate * (joint - real), real_weights


def _with(virtual: Tensor, real: Tensor) -> Tensor:
    """Put `(l, heads * head)` in front of `(batch, heads, T, head)`."""
    batch, heads, _, head = real.shape
    split = virtual.to(real.dtype).unflatten(1, (heads, head)).transpose(0, 1)
    return torch.cat([split.expand(batch, -1, -1, -1), real], dim=2)


def _prepended(scores: Tensor, length: int, tokens: int) -> Tensor:
    """Put columns that neither hide nor favour the virtual tokens in front of a mask or bias `(..., T)`."""
    # A boolean mask marks the keys to attend to; any other mask or bias is added to the scores.
    neutral = scores.new_full((*scores.shape[:-1], tokens), scores.dtype == torch.bool)
    return torch.cat([neutral, scores[..., :length].expand(*scores.shape[:-1], length)], dim=-1)
