"""Short digests that tell whether an adapter meets the model, the sites and the random streams it was made with."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from contextlib import suppress
from typing import NamedTuple

import numpy as np
import torch
from accelerate.utils import align_module_device
from torch import nn

from capaft.adapter.plan import Plan
from capaft.factors import rng
from capaft.factors.expansion import words_used
from capaft.factors.rng import Streams
from capaft.model.names import canonical_name
from capaft.model.site import Site, is_quantised
from capaft.model.targets import Targets
from capaft.model.weight_sites import find_weight_sites
from capaft.support.errors import UsageError

SAMPLES = 64
RELATIVE_TOLERANCE = 2e-2
# float16 keeps numbers below this with fewer bits than the relative tolerance asks for.
ABSOLUTE_TOLERANCE = 1e-6


def sites_digest(sites: tuple[Site, ...]) -> str:
    """Digest of the sites' canonical paths and weight shapes, `[[path, out, in], ...]` sorted by path."""
    listed = [[site.path, site.out_features, site.in_features] for site in sites]
    return _digest(json.dumps(listed, separators=(",", ":"), ensure_ascii=True).encode())


def streams_digest(decided: Plan) -> str:
    """Digest of the first and last word of every random stream, ordered by site, factor and purpose."""
    streams: set[tuple[str, str, str, int]] = set()
    for groups in decided.groups().values():
        for factor, sites in groups:
            used = words_used(factor, decided.coefficients(factor), decided.stack.copies_of(factor))
            for own in (Streams(decided.seed, site.path, factor.name) for site in sites):
                streams |= {
                    ((factor.origin(own) if purpose == "init" else own).site, factor.name, purpose, count)
                    for purpose, count in used.items()
                }
    state = hashlib.blake2b(digest_size=16)
    for site, name, purpose, count in sorted(streams):
        key = Streams(decided.seed, site, name).key(purpose)
        for position in (0, count - 1):
            state.update(rng.words(key, 1, position).astype("<u8").tobytes())
    return state.hexdigest()


class WeightSamples(NamedTuple):
    """Sample weights of a model: those at the sites, and those of the head that are not trained themselves."""

    base: str | None
    head: str | None


def weight_samples(model: nn.Module, decided: Plan) -> WeightSamples:
    """What tells a base model from others, for an adapter of this plan."""
    return WeightSamples(base_samples(model, decided), head_samples(model, decided) if decided.head.record() else None)


def base_samples(model: nn.Module, decided: Plan) -> str | None:
    """64 seeded sample weights of the base model at the sites, base64 of float16.

    Where the sites are no weights (`head`, adapter layers, biases, which often are 0), of all linear layers that are
    not trained as they are. None where there is nothing to compare: method `full` replaces every weight, and a
    quantised weight has no single value.
    """
    if decided.stack.method == "full":
        return None
    sites = tuple(site for site in decided.sites if site.parameter and site.kind != "bias")
    if not sites:
        sites = tuple(
            site
            for site in _weights(model, decided.rename)
            if canonical_name(model, f"{site.module}.{site.parameter}", decided.rename) not in decided.trained
        )
    return _samples(model, sites, decided.seed, "base") if sites else None


def head_samples(model: nn.Module, decided: Plan) -> str | None:
    """The same of what the head's parameters hold that are not trained themselves; None where that is quantised."""
    return _samples(model, decided.head.parameters, decided.seed, "head")


def _samples(model: nn.Module, sites: tuple[Site, ...], seed: int, what: str) -> str | None:
    """64 seeded sample weights of sites, base64 of float16; None where one is quantised."""
    drawn = rng.words(rng.fold_in(seed, "", what, "fingerprint"), 2 * SAMPLES) >> np.uint64(32)
    samples = []
    for first, second in zip(drawn[0::2].tolist(), drawn[1::2].tolist(), strict=True):
        site = sites[first * len(sites) >> 32]
        # Fetches a weight that accelerate has offloaded.
        with align_module_device(model.get_submodule(site.module)):
            if is_quantised(site.stored(model)):
                return None
            weight = site.weight(model)
            entry = second * weight.numel() >> 32
            row, column = divmod(entry, site.in_features)
            samples.append(float(weight[row, column].detach()))
    return base64.b64encode(np.array(samples, dtype="<f2").tobytes()).decode()


def _weights(model: nn.Module, rename: dict[str, str]) -> tuple[Site, ...]:
    """The linear layers of a model, or where it has none its convolutions, or its embeddings."""
    for preset in ("all-linear", "conv", "embeddings"):
        with suppress(UsageError):
            return find_weight_sites(model, Targets(preset), rename)
    return ()


def same_base(stored: str, found: str) -> bool:
    """Whether two sets of samples agree as float32, bfloat16 and float16 copies of one model do."""
    ours, theirs = (np.frombuffer(base64.b64decode(text), dtype="<f2").astype(np.float64) for text in (stored, found))
    return ours.shape == theirs.shape and bool(
        np.allclose(ours, theirs, rtol=RELATIVE_TOLERANCE, atol=ABSOLUTE_TOLERANCE)
    )


def tensors_digest(tensors: dict[str, torch.Tensor]) -> str:
    """Digest of the stored tensors: for each, by name, the name, a zero byte, and the raw little-endian bytes."""
    state = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        state.update(name.encode() + b"\0")
        flat = tensors[name].contiguous().view(-1)
        if math.prod(flat.shape):
            state.update(flat.view(torch.uint8).numpy().data)
    return state.hexdigest()


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
