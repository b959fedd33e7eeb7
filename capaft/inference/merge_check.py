"""Whether a merged model answers as the base with the adapters does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from capaft.adapter.merged_weight import Rounding
from capaft.exchange.probe import Difference, NoProbe, answers, answers_when_shaken, compare, tolerance
from capaft.model.site import is_quantised
from capaft.support.errors import TrainingError

# Times as far as random steps of rounding's size bring the answers apart.
SPREAD = 3.0
MOST_IN_MEMORY = 2**30
"""Entries of a model in memory up to which it is asked in float32."""


@dataclass(frozen=True)
class Verdict(Difference):
    """The difference of a merged model that is right.

    Attributes:
        allowed: the relative difference that rounding explains.
    """

    allowed: float = 0.0


def check_answers(path: Path, adapted: Tensor, load: Callable[[], nn.Module], written: torch.dtype) -> Verdict:
    """Compare the answers of a merged model with those of the base with its adapters.

    Args:
        path: the directory of the merged model.
        adapted: the answers of the base with its adapters.
        load: loads the merged model, to compute in the dtype of those answers.
        written: the coarsest dtype that a weight or an output was rounded to.

    Raises:
        NoProbe: the merged model cannot be asked, or its answers would tell nothing.
        TrainingError: it answers otherwise.
    """
    merged = answers(load())
    difference, allowed = compare(adapted, merged), tolerance(written)
    if difference.relative > allowed and torch.isfinite(merged).all() and merged.shape == adapted.shape:
        shaken = compare(merged, answers_when_shaken(load(), written))
        allowed = max(allowed, SPREAD * shaken.relative)
    verdict = Verdict(difference.largest, difference.size, allowed)
    name = str(written).removeprefix("torch.")
    if not verdict.relative <= allowed:
        raise TrainingError(
            f"the merged model answers otherwise than the base with the adapter: outputs differ by up to "
            f"{verdict.largest:.3g}, {verdict.relative:.2g} of the largest, and {name} explains {allowed:.2g}; it lies "
            f"in {path}, whole but wrong: remove it"
        )
    if allowed >= 1:
        raise NoProbe(
            f"rounding to {name} alone turns this model's answers into others; merge with --dtype float32 to tell"
        )
    return verdict


def coarsest(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """The coarsest of some dtypes, float32 at least."""
    return max((torch.float32, *dtypes), key=lambda dtype: torch.finfo(dtype).eps)


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """Holds a model in float32 for a while, unless it is quantised or large; what it held in fewer bits is unharmed."""
    tensors = [tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point()]
    few = sum(tensor.numel() for tensor in tensors) <= MOST_IN_MEMORY
    narrow = [tensor for tensor in tensors if tensor.dtype in (torch.float16, torch.bfloat16)]
    if not few or any(map(is_quantised, model.parameters())):
        narrow = []
    dtypes = [tensor.dtype for tensor in narrow]
    for tensor in narrow:
        tensor.data = tensor.data.float()
    try:
        yield
    finally:
        for tensor, dtype in zip(narrow, dtypes, strict=True):
            tensor.data = tensor.data.to(dtype)


def rounding_line(rounding: Rounding) -> str | None:
    """What rounding the merged weights costs, in a line; None if nothing was rounded."""
    if rounding.coarsest is None or not (layers := rounding.by_layer):
        return None
    worst, dtype = max(layers, key=lambda path: layers[path]), str(rounding.coarsest).removeprefix("torch.")
    mean = sum(layers.values()) / len(layers)
    most = f"{layers[worst]:.1%} at most ({worst})"
    return f"rounding to {dtype} changes an update by {mean:.1%} of its size on average over layers, {most}"
