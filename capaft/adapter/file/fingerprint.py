"""Short digests that tell whether an adapter is on the model, sites and random streams it was made with."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from contextlib import suppress
from typing import NamedTuple

import torch
from torch import nn

from capaft.adapter.file.encoding import dtype_name
from capaft.adapter.file.samples import FEW_SAMPLES, SAMPLES, samples_of
from capaft.adapter.plan import Plan
from capaft.factors import rng
from capaft.factors.expansion import words_used
from capaft.factors.rng import Streams
from capaft.model.names import canonical_name
from capaft.model.quantised import quantised_layers
from capaft.model.site import Site
from capaft.model.targets import Targets
from capaft.model.weight_sites import find_weight_sites
from capaft.support.errors import UsageError


def streams_digest(plan: Plan) -> str:
    """Digest of the first and last word of every random stream, ordered by site, factor and purpose."""
    streams: set[tuple[str, str, str, int]] = set()
    for groups in plan.groups().values():
        for factor, sites in groups:
            used = words_used(factor, plan.coefficients(factor), plan.stack.copies_of(factor))
            for of_site in (Streams(plan.seed, site.path, factor.name) for site in sites):
                streams |= {
                    ((factor.origin(of_site) if purpose == "init" else of_site).site, factor.name, purpose, count)
                    for purpose, count in used.items()
                }
    state = hashlib.blake2b(digest_size=16)
    for site, name, purpose, count in sorted(streams):
        key = Streams(plan.seed, site, name).key(purpose)
        for position in (0, count - 1):
            state.update(rng.words(key, 1, position).astype("<u8").tobytes())
    return state.hexdigest()


class WeightSamples(NamedTuple):
    """Sample weights of a model: those at the sites, and those of the head that are not trained directly."""

    base: str | None
    head: str | None


def weight_samples(model: nn.Module, plan: Plan, heads: Mapping[str, torch.Tensor] | None = None) -> WeightSamples:
    """The samples that tell a base model from others, for an adapter of this plan; see `head_samples` for `heads`."""
    return WeightSamples(base_samples(model, plan), head_samples(model, plan, heads) if plan.head.record() else None)


def base_samples(model: nn.Module, plan: Plan) -> str | None:
    """Sample weights of the base model at the sites; see `samples_of`.

    Where the sites are not weights (`head`, adapter layers, biases, which often are 0), of all linear layers that are
    not trained directly. None where there is nothing to compare: method `full` replaces every weight, and a quantised
    weight has no single value.
    """
    if plan.stack.method == "full":
        return None
    sites = tuple(site for site in plan.sites if site.parameter and site.kind != "bias")
    if not sites:
        sites = tuple(
            site
            for site in _layers(model, plan.rename)
            if canonical_name(model, f"{site.module}.{site.parameter}", plan.rename) not in plan.trained
        )
    return samples_of(model, sites, plan.seed, "base", SAMPLES) if sites else None


def head_samples(model: nn.Module, plan: Plan, heads: Mapping[str, torch.Tensor] | None = None) -> str | None:
    """The same for the head's parameters that are not trained directly, which are few.

    Args:
        model: the base model.
        plan: the plan of the adapter.
        heads: parameters by canonical name that the adapter has in place of the model's.
    """
    return samples_of(model, plan.head.parameters, plan.seed, "head", FEW_SAMPLES, heads)


def _layers(model: nn.Module, rename: dict[str, str]) -> tuple[Site, ...]:
    """The linear layers of a model; without any its convolutions, or else its embeddings; none if some are packed."""
    if quantised_layers(model):
        return ()
    for preset in ("all-linear", "conv", "embeddings"):
        with suppress(UsageError):
            return find_weight_sites(model, Targets(preset), rename)
    return ()


def tensors_digest(tensors: dict[str, torch.Tensor]) -> str:
    """Digest of the stored tensors by name: of each the name, the dtype, the shape and the raw little-endian bytes.

    Lengths come first and the shape has one, so no two sets of tensors give the same bytes.
    """
    state = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors.items()):
        for text in (name.encode(), dtype_name(tensor).encode()):
            state.update(struct.pack("<Q", len(text)) + text)
        state.update(struct.pack(f"<{tensor.ndim + 2}Q", tensor.ndim, *tensor.shape, tensor.nbytes))
        if tensor.numel():
            state.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()
